// A float32 matrix as two of halves and a scale for each row, x = scale * (high + low), for v8_split.cu to multiply.
//
// halves.cuh says what the halves are; the scale is that of the row's largest finite number. Infinity gives its row's scale a minus sign, for
// v8 to see.
//
// The matrix (rows, k) is read with its rows or its columns dense. What is written has dense rows of `padded` elements, k and then zeros
// up to a multiple of 8: `high` (rows, padded), and right after it low, of the same shape.
#include "halves.cuh"
#include "vector.cuh"
#include "warp.cuh"

// What must be known of a row before it can be scaled.
struct Range {
    float largest;  // of the finite magnitudes
    bool infinite;

    __device__ __forceinline__ void add(float x) {
        const float size = fabsf(x);
        if (size < CUDART_INF_F) largest = fmaxf(largest, size);
        infinite |= size == CUDART_INF_F;
    }
    __device__ __forceinline__ void add(Range other) {
        largest = fmaxf(largest, other.largest);
        infinite |= other.infinite;
    }
    // Of all lanes whose numbers differ in the bits of `distances` at most.
    __device__ __forceinline__ void exchange(int distances) {
        for (int distance = 16; distance > 0; distance /= 2) {
            if (!(distance & distances)) continue;
            Range other;
            other.largest = __shfl_xor_sync(FULL_WARP, largest, distance);
            other.infinite = __shfl_xor_sync(FULL_WARP, int(infinite), distance);
            add(other);
        }
    }
    __device__ __forceinline__ float scale() const { return infinite ? -power_of_two_below(largest) : power_of_two_below(largest); }
};

// A matrix whose rows are dense, `stride` elements apart. A row is read once: THREADS threads keep it in registers, UNITS times 8 elements
// each; or, with UNITS = 0, twice, whatever its length. Launch blocks of 256 threads, for 256 / THREADS rows each; THREADS is 32 or 256.
template <int WIDTH, int THREADS, int UNITS>
__global__ void __launch_bounds__(256)
    split_rows(const float* x, __half* high, float* scales, int rows, int k, int padded, long long stride) {
    const int row = blockIdx.x * (256 / THREADS) + threadIdx.x / THREADS, thread = threadIdx.x % THREADS;
    const bool there = row < rows;
    x += there ? row * stride : 0;
    high += there ? row * (long long)padded : 0;
    __half* const low = high + rows * (long long)padded;
    const int units = there ? padded / 8 : 0;

    float kept[UNITS > 0 ? UNITS : 1][8];
    Range range = {0.0f, false};
    if (UNITS > 0) {
#pragma unroll
        for (int i = 0; i < UNITS; ++i) {
            const int at = 8 * (i * THREADS + thread);
            if (at < 8 * units) load_unit<WIDTH>(x + at, k - at, kept[i]);
        }
#pragma unroll
        for (int i = 0; i < 8 * UNITS; ++i) {
            if (i / 8 * THREADS + thread < units) range.add(kept[i / 8][i % 8]);
        }
    } else {
        for (int unit = thread; unit < units; unit += THREADS) {
            load_unit<WIDTH>(x + 8 * unit, k - 8 * unit, kept[0]);
            for (int i = 0; i < 8; ++i) range.add(kept[0][i]);
        }
    }
    range.exchange(31);
    if (THREADS > 32) {
        __shared__ Range of_warp[THREADS / 32];
        if (lane_id() == 0) of_warp[warp_id()] = range;
        __syncthreads();
        for (int i = 0; i < THREADS / 32; ++i) range.add(of_warp[i]);
    }
    const float scale = range.scale(), factor = reciprocal(scale);
    if (there && thread == 0) scales[row] = scale;
    if (UNITS > 0) {
#pragma unroll
        for (int i = 0; i < UNITS; ++i) {
            const int at = 8 * (i * THREADS + thread);
            if (at < 8 * units) store_unit(high + at, low + at, kept[i], factor);
        }
    } else {
        for (int unit = thread; unit < units; unit += THREADS) {
            load_unit<WIDTH>(x + 8 * unit, k - 8 * unit, kept[0]);
            store_unit(high + 8 * unit, low + 8 * unit, kept[0], factor);
        }
    }
}

// A matrix whose columns are dense, `stride` elements apart. A block of 1024 threads has 16 of its rows, which in memory are a strip 64
// bytes wide; it reads them once for the scales and again, from L2, to split them. They are turned in shared memory.
constexpr int STRIP = 16, TURNED = 256;  // rows of a strip, columns that are turned at a time
template <int WIDTH>
__global__ void __launch_bounds__(1024)
    split_columns(const float* x, __half* high, float* scales, int rows, int k, int padded, long long stride) {
    __shared__ float turned[2][STRIP][TURNED + 2];
    __shared__ Range of_warp[32][STRIP];
    __shared__ float factors[STRIP];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // What this thread reads: 4 rows, from `four` on, of a column.
    const int first = blockIdx.x * STRIP, four = threadIdx.x % 4 * 4, column = threadIdx.x / 4;
    x += first + four;
    const auto load = [&](int at, float (&y)[4]) {
        const int left = at < k ? rows - first - four : 0;
        const float* from = x + at * stride;
        if (WIDTH == 4 && left >= 4) load_vector(from, y);
        else
#pragma unroll
            for (int i = 0; i < 4; ++i) y[i] = i < left ? from[i] : 0.0f;
    };

    Range ranges[4] = {};
    for (int begin = column; begin < k; begin += 4 * TURNED) {
        float y[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) load(begin + i * TURNED, y[i]);
#pragma unroll
        for (int i = 0; i < 16; ++i) ranges[i % 4].add(y[i / 4][i % 4]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        ranges[i].exchange(4 | 8 | 16);
        if (lane < 4) of_warp[warp][four + i] = ranges[i];
    }
    __syncthreads();
    if (warp < STRIP) {
        Range range = of_warp[lane][warp];
        range.exchange(31);
        if (lane == 0) factors[warp] = reciprocal(range.scale());
        if (lane == 0 && first + warp < rows) scales[first + warp] = range.scale();
    }

    // What this thread writes: 4 neighbours of a row.
    const int row = threadIdx.x / 64, place = threadIdx.x % 64 * 4;
    high += (first + row) * (long long)padded + place;
    __half* const low = high + rows * (long long)padded;
    float y[4];
    load(column, y);
    for (int begin = 0, buffer = 0; begin < padded; begin += TURNED, buffer ^= 1) {
#pragma unroll
        for (int i = 0; i < 4; ++i) turned[buffer][four + i][column] = y[i];
        load(begin + TURNED + column, y);
        __syncthreads();
        if (first + row >= rows || begin + place >= padded) continue;
        const float *from = &turned[buffer][row][place], factor = factors[row];
        uint2 highs, lows;
        split(factor * from[0], factor * from[1], highs.x, lows.x);
        split(factor * from[2], factor * from[3], highs.y, lows.y);
        *reinterpret_cast<uint2*>(high + begin) = highs;
        *reinterpret_cast<uint2*>(low + begin) = lows;
    }
}
