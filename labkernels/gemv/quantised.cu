// The stream of v3 with a quantised weight: what the engine's decode step is made of where weights have 8 or 4 bits.
//   Idea      labkernels/quant multiplies; a decode step also wants the norm before, SwiGLU and the residual behind, in the same launch, and
//             to begin early. So its formats come into this stream. int4 and int8 go to the tensor cores as bytes (digits.cuh).
//   Predicts  Llama-3.2-1B at int4, layers alone: 0.52 GB a token, 0.12 ms, and 5 launches a layer for 9.
//   Measured  The engine's answers are in engine.csv. When it was tuned, a token in 16-bit numbers took 0.61 ms, in digits 0.51: 204 instructions a
//             KB of the weight, then 115.
//   Wastes    A launch's own time: from the end of the kernel before to what its last block writes, 2.5 us at least, 80 times a token.
#include "../quant/gemv_formats.cuh"
#include "epilogues.cuh"
#include "stream.cuh"

// As gemv_stream. Nibbles, Int4 and Codes in groups of 128; k a multiple of what 64 bytes hold. table_bytes: 32 KB for Codes.
template <class Format, class Out, bool NORM, bool GATED, int TILES, int WARPS, int SHARE, int AHEAD, int BLOCKS>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    gemv_quantised(const typename Format::T* x, const void* w, const void* scales, const float* codebook, const typename Format::T* norm_weight,
                   const typename Format::T* residual, Out* y, Sizes sizes, int table_bytes) {
    using T = typename Format::T;
    extern __shared__ __align__(16) unsigned char shared[];
    if constexpr (GATED) {
        stream<Format, NORM, TILES, WARPS, SHARE, AHEAD>(Gated<T, Out>{residual, y, sizes.n / 2}, x, w, scales, codebook, norm_weight, sizes, shared, table_bytes);
    } else {
        stream<Format, NORM, TILES, WARPS, SHARE, AHEAD>(Plain<T, Out>{residual, y, sizes.n}, x, w, scales, codebook, norm_weight, sizes, shared, table_bytes);
    }
}
