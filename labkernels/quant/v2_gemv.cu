// Quantised matmul, v2: a stream. For a few rows of x (decoding), the time is that of reading the weight; nothing else may take longer.
//   Idea      16 bytes a load, several loads of a lane on their way, each byte once and past the caches (evict-first). Numbers of 4 bits
//             become 16-bit floats two at a time: a shift, and one lop3 that masks them and ors an exponent beneath (128 + q). Then tensor
//             cores: a warp's mma multiplies 256 numbers, where fmaf would need 8 instructions a lane and an unpacking to float32 first.
//             128 + zero times the sum of x comes off once a group. Kernels follow each other early: the first loads of one are under
//             way while the last blocks of another still run.
//   Predicts  2 instructions a number, where 3.4 would fill the issue slots at 4350 GB/s: bound by memory. 24 MB of int4
//             (4096 x 11008): 5.5 us, and what launching and the first bytes take.
//   Measured  data/measured/h200/quant_matmul.csv
//   Wastes    Seven of eight columns of the tensor cores when x has one row.
#include "gemv.cuh"
#include "pack.cuh"

struct NoTable {};

template <class T> struct IsHalf { static constexpr bool value = false; };
template <> struct IsHalf<__half> { static constexpr bool value = true; };

template <class T> __device__ unsigned subtract_pairs(unsigned a, unsigned b);
template <> __device__ __forceinline__ unsigned subtract_pairs<__nv_bfloat16>(unsigned a, unsigned b) {
    const __nv_bfloat162 difference = __hsub2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
    return *reinterpret_cast<const unsigned*>(&difference);
}
template <> __device__ __forceinline__ unsigned subtract_pairs<__half>(unsigned a, unsigned b) {
    const __half2 difference = __hsub2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b));
    return *reinterpret_cast<const unsigned*>(&difference);
}

__device__ inline unsigned word_of(const uint4& words, int i) { return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w; }

// Numbers of 4 bits as 128 + q (bfloat16) or 1024 + q (half).
template <class Element>
struct Int4 {
    using T = Element;
    using Table = NoTable;
    static constexpr bool BF16 = !IsHalf<T>::value, GROUPED = true, ASYMMETRIC = true;
    static constexpr int PIECES = 4;
    static constexpr float OFFSET = BF16 ? 128.0f : 1024.0f;
    static __device__ Table prepare(unsigned char*, const float*) { return {}; }
    static __device__ void arrange(uint4&) {}
    static __device__ void decode(const uint4& words, int piece, Table, unsigned (&pairs)[4]) {
        const unsigned word = word_of(words, piece);
#pragma unroll
        for (int i = 0; i < 4; ++i) pairs[i] = lop3<(LOP3_A & LOP3_B) | LOP3_C>(word >> 4 * i, 0x000f000fu, BF16 ? 0x43004300u : 0x64006400u);
    }
};

// Bytes with a sign. bfloat16 has 8 bits: the lower 7 become 128 + b, and 128, or for a negative number 256, comes off.
template <class Element>
struct Int8 {
    using T = Element;
    using Table = NoTable;
    static constexpr bool BF16 = !IsHalf<T>::value, GROUPED = false, ASYMMETRIC = false;
    static constexpr int PIECES = 2;
    static constexpr float OFFSET = 0.0f;
    static __device__ Table prepare(unsigned char*, const float*) { return {}; }
    static __device__ void arrange(uint4&) {}
    static __device__ void decode(const uint4& words, int piece, Table, unsigned (&pairs)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned word = word_of(words, 2 * piece + i / 2);
            if (BF16) {
                const unsigned apart = prmt(word, 0u, i % 2 ? 0x4342 : 0x4140);
                const unsigned low = lop3<(LOP3_A & LOP3_B) | LOP3_C>(apart, 0x007f007fu, 0x43004300u);
                const unsigned sign = lop3<(LOP3_A & LOP3_B) | LOP3_C>(apart, 0x00800080u, 0x43004300u);
                pairs[i] = subtract_pairs<T>(low, sign);
            } else {
                pairs[i] = subtract_pairs<T>(prmt(word ^ 0x80808080u, 0x64646464u, i % 2 ? 0x4342 : 0x4140), 0x64806480u);  // 1024 + 128
            }
        }
    }
};

// fp8 (e4m3). Its exponent and fraction, 4 bits further down, are those of a bfloat16 that is 2^120 times too small.
template <class Element>
struct Fp8 {
    using T = Element;
    using Table = NoTable;
    static constexpr bool BF16 = !IsHalf<T>::value, GROUPED = false, ASYMMETRIC = false;
    static constexpr int PIECES = 2;
    static constexpr float OFFSET = 0.0f;
    static __device__ Table prepare(unsigned char*, const float*) { return {}; }
    static __device__ void arrange(uint4&) {}
    static __device__ void decode(const uint4& words, int piece, Table, unsigned (&pairs)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned word = word_of(words, 2 * piece + i / 2);
            if (BF16) {
                const unsigned high = prmt(word, 0u, i % 2 ? 0x3424 : 0x1404);  // each byte at the top of its half
                unsigned small = lop3<(LOP3_A & LOP3_B) | LOP3_C>(high >> 4, 0x07f007f0u, high & 0x80008000u);
                unsigned factor = 0x7b807b80u;  // 2^120
                const __nv_bfloat162 pair = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&small), *reinterpret_cast<__nv_bfloat162*>(&factor));
                pairs[i] = *reinterpret_cast<const unsigned*>(&pair);
            } else {
                pairs[i] = unpack_e4m3x2(static_cast<unsigned short>(word >> (i % 2 ? 16 : 0)));
            }
        }
    }
};

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
