// What becomes of the sums of a tile of 16 rows of the weight: `row` says which row of the weight row r + 8 h of the tile is, `put` takes the sums
// of r (a) and r + 8 (b) for one row of x. What it needs from memory for them is `hold`, asked for before the sums are known.
#pragma once
#include "convert.cuh"

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

// y = a (+ residual); `outputs` columns. y may be the residual.
template <class T, class Out>
struct Plain {
    const T* residual;
    Out* y;
    int outputs;

    struct Held {
        float a, b;
    };

    __device__ int row(int tile, int h, int r) const { return 16 * tile + 8 * h + r; }
    __device__ Held hold(int x_row, int tile, int r) const { return {hold_one(x_row, 16 * tile + r), hold_one(x_row, 16 * tile + 8 + r)}; }
    __device__ void put(const Held& held, int x_row, int tile, int r, float a, float b) const {
        put_one(x_row, 16 * tile + r, a + held.a);
        put_one(x_row, 16 * tile + 8 + r, b + held.b);
    }
    __device__ float hold_one(int x_row, int column) const {
        return residual && column < outputs ? to_float(residual[static_cast<long long>(x_row) * outputs + column]) : 0.0f;
    }
    __device__ void put_one(int x_row, int column, float value) const {
        if (column < outputs) y[static_cast<long long>(x_row) * outputs + column] = from_float<Out>(value);
    }
};

// y = silu(gate) * up (+ residual): the first half of the weight's rows are gates, the second half ups.
template <class T, class Out>
struct Gated {
    const T* residual;
    Out* y;
    int outputs;

    using Held = float;

    __device__ int row(int tile, int h, int r) const { return min(8 * tile + r, outputs - 1) + h * outputs; }
    __device__ Held hold(int x_row, int tile, int r) const {
        const int column = 8 * tile + r;
        return residual && column < outputs ? to_float(residual[static_cast<long long>(x_row) * outputs + column]) : 0.0f;
    }
    __device__ void put(Held held, int x_row, int tile, int r, float gate, float up) const {
        const int column = 8 * tile + r;
        if (column < outputs) y[static_cast<long long>(x_row) * outputs + column] = from_float<Out>(silu(gate) * up + held);
    }
};
