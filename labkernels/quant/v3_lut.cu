// Quantised matmul, v3: by lookup table. Any 16 numbers a code may stand for: NF4, a codebook learnt from the weight; int4 as well.
//   Idea      Arithmetic knows only evenly spaced numbers. A table of all 256 bytes has two codes' 16-bit floats in one word: a shift, a
//             mask and a load for two numbers. Random lookups would meet in a bank 3 or 4 at a time; so each of the 32 banks has a table
//             of its own, and a lane looks only into that of its bank: 32 KB, and no conflict ever.
//   Predicts  One shared load for two numbers, 64 numbers a clock and SM; the stream brings 37. Within 1.15 of v2.
//   Measured  data/measured/h200/quant_matmul.csv: one row of x, 11008 x 4096: NF4 420 -> 15.7 us; int4 16.7, 1.72 times v2's 9.7.
//   Wastes    32 KB of tables in every block.
#include "gemv.cuh"
#include "gemv_formats.cuh"

// As quant_matmul_gemv. Dynamic shared memory: WARPS * x_bytes, and 32 KB for the tables.
template <class T, bool HAS_ZEROS, int SPANS, int ROWS, int WARPS, int AHEAD, int BLOCKS>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS)
quant_matmul_lut(const T* x, const void* packed, const void* scales, const float* codebook, T* y, int m, int n, int k,
                 long long x_stride, long long row_bytes, int groups, Parts parts, int aligned, int x_bytes) {
    extern __shared__ __align__(16) unsigned char shared[];
    stream<Codes<T, HAS_ZEROS>, SPANS, ROWS, WARPS, AHEAD>(x, static_cast<const unsigned char*>(packed), scales, codebook, y, m, n, k, x_stride,
                                                             row_bytes, groups, parts, aligned, x_bytes, shared);
}
