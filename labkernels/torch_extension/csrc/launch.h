// What the operators (operators.cpp, with torch) ask of the kernels (the generated units, by nvcc, without torch), and the list of kernels there
// are. A unit instantiates a kernel in one configuration and puts itself on the list when the library is loaded.
#pragma once
#include <cuda_runtime_api.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

namespace labkernels {

enum class Element { kBfloat16, kHalf };

struct Gpu {
    int index, processors, architecture;  // 90: compute capability 9.0
    cudaStream_t stream;
};

struct MatmulCall {
    Gpu gpu;
    const void *a, *b, *bias, *residual;  // the last two may be null
    void* c;
    int m, n, k, activation;
    long long a_stride, b_stride, residual_stride;  // in elements; b's is that between rows if b_rows, else that between columns
    bool b_rows;
    bool finishes() const { return bias != nullptr || residual != nullptr || activation != 0; }
};

struct MatmulKernel {
    Element element;
    int architecture, rows, columns;  // of a tile
    bool takes_b_rows, finishes_b_rows;  // b by rows, and then with bias, activation or residual
    int k_multiple;             // it takes a k that is a multiple of this
    float launch, tile, stage;  // microseconds: of a launch, of each tile of the busiest block, of each stage of 64 of k in a tile
    void (*run)(const MatmulCall&);
};

struct HeadStrides {
    long long batch, head, seq;
};

struct HeadTensor {  // (batch, heads, seq, head_dim), the last axis dense
    void* data;
    HeadStrides stride;
};

struct AttentionCall {
    Gpu gpu;
    HeadTensor q, k, v, out;
    float* lse;  // (batch, heads, seq_len), dense
    int batches, heads, kv_heads, seq_len, kv_len, head_dim, window_left, window_right;
    float scale;
};

struct AttentionKernel {
    Element element;
    int architecture, head_dim;  // or less
    bool short_and_causal;       // for these alone
    void (*run)(const AttentionCall&);
};

struct BackwardCall {
    AttentionCall forward;
    HeadTensor grad, grad_q, grad_k, grad_v;
    float *row_values, *sums;  // room for what a kernel wants, see BackwardKernel; sums are zero
    int* turns;                // zero, or null where the order of the sums is left to chance
};

struct BackwardKernel {
    Element element;
    int architecture, head_dim, block_q;  // 2 values a row of queries, in whole tiles of block_q; head_dim sums each; 2 turns a tile
    void (*run)(const BackwardCall&);
};

template <class Kernel>
std::vector<Kernel>& kernels() {
    static std::vector<Kernel> all;
    return all;
}

template <class Kernel>
struct Register {
    explicit Register(const Kernel& kernel) { kernels<Kernel>().push_back(kernel); }
};

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string("labkernels: ") + what + ": " + cudaGetErrorString(status));
}

inline int ceil_div(long long a, int b) { return static_cast<int>((a + b - 1) / b); }

// Lets a kernel have more than 48 KB of shared memory, once on each GPU.
struct SharedMemory {
    std::atomic<unsigned long long> told{0};
    void allow(const void* kernel, int bytes, int gpu) {
        const unsigned long long bit = 1ull << gpu % 64;
        if (told.load(std::memory_order_relaxed) & bit) return;
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
        told.fetch_or(bit);
    }
};

}  // namespace labkernels
