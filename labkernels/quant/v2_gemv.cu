// Quantised matmul, v2: a stream. For a few rows of x (decoding), the time is that of reading the weight; nothing else may take longer.
//   Idea      16 bytes a load, several loads of a lane on their way, each byte once and past the caches (evict-first). Numbers of 4 bits
//             become 16-bit floats two at a time: a shift, and one lop3 that masks them and ors an exponent beneath (128 + q). Then tensor
//             cores: a warp's mma multiplies 256 numbers, where fmaf would need 8 instructions a lane and an unpacking to float32 first.
//             128 + zero times the sum of x comes off once a group. Kernels follow each other early: the first loads of one are under
//             way while the last blocks of another still run.
//   Predicts  2 instructions a number, where 3.4 would fill the issue slots at 4350 GB/s: bound by memory. 24 MB of int4
//             (4096 x 11008): 5.5 us, and what launching and the first bytes take.
//   Measured  data/measured/h200/quant_matmul.csv: one row of x, 11008 x 4096 in int4: 427 -> 9.7 us (cuBLAS with a bf16 weight 27.3); 28672 x
//             8192: 37.2 (123). Loads on their way take lines of L1: where early launches asked for all of an SM's memory as shared
//             memory, it took 13.0 and 53.0.
//   Wastes    Seven of eight columns of the tensor cores when x has one row.
#include "gemv.cuh"
#include "gemv_formats.cuh"

// y = x w^T for up to 8 rows of x. SPANS: groups in 128 of k (1, 2, 4); ROWS: of x, m or more (1, 2, 4, 8). Grid: (n / 16, splits),
// the splits a cluster. Dynamic shared memory: WARPS * x_bytes.
template <template <class> class Format, class T, int SPANS, int ROWS, int WARPS, int AHEAD, int BLOCKS>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS)
quant_matmul_gemv(const T* x, const void* packed, const void* scales, const float* codebook, T* y, int m, int n, int k,
                  long long x_stride, long long row_bytes, int groups, Parts parts, int aligned, int x_bytes) {
    extern __shared__ __align__(16) unsigned char shared[];
    stream<Format<T>, SPANS, ROWS, WARPS, AHEAD>(x, static_cast<const unsigned char*>(packed), scales, codebook, y, m, n, k, x_stride,
                                                   row_bytes, groups, parts, aligned, x_bytes, shared);
}
