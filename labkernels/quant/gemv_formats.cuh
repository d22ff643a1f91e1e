// How a GEMV's 16 bytes of a row become pairs of 16-bit numbers in registers: by arithmetic (Int4, Int8, Fp8), or by lookup (Codes).
//
// What a format says:
//   T, PIECES (8 of k that 16 bytes hold: 4 or 2), GROUPED, ASYMMETRIC (has zeros), OFFSET (what decoded numbers are too large by)
//   prepare(shared, codebook): once a block, all threads; it ends with __syncthreads if it wrote anything
//   decode(words of one row, piece, table, pairs): 4 registers, pairs of k in the order that arrange(x) brings x into
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "bits.cuh"
#include "pack.cuh"
#include "warp.cuh"

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

// Numbers of 4 bits as 128 + q (bfloat16), which saves a shift, or 16 + q (half: where 1024 + q is summed, three digits of the sum are lost).
template <class Element>
struct Int4 {
    using T = Element;
    using Table = NoTable;
    static constexpr bool BF16 = !IsHalf<T>::value, GROUPED = true, ASYMMETRIC = true;
    static constexpr int PIECES = 4;
    static constexpr float OFFSET = BF16 ? 128.0f : 16.0f;
    static __device__ Table prepare(unsigned char*, const float*) { return {}; }
    static __device__ void arrange(uint4&) {}
    static __device__ void decode(const uint4& words, int piece, Table, unsigned (&pairs)[4]) {
        const unsigned word = word_of(words, piece);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (BF16) pairs[i] = lop3<(LOP3_A & LOP3_B) | LOP3_C>(word >> 4 * i, 0x000f000fu, 0x43004300u);
            else pairs[i] = lop3<(LOP3_A & LOP3_B) | LOP3_C>(i < 2 ? word << (6 - 4 * i) : word >> (4 * i - 6), 0x03c003c0u, 0x4c004c00u);
        }
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

struct Lane {
    const unsigned char* table;  // of this lane's bank: the pair of byte b at 128 * b
};
struct Bank {
    const unsigned char* table;  // of bank 0
    unsigned place;              // of this lane's bank, in bytes
};

// Codes of 4 bits, looked up two at a time. With zeros it is int4, and the codebook 0, 1, ... 15. Of a Bank a lookup takes an instruction less,
// and the lane a register more.
template <class Element, bool HAS_ZEROS, class Place = Lane>
struct Codes {
    using T = Element;
    using Table = Place;
    static constexpr bool GROUPED = true, ASYMMETRIC = HAS_ZEROS;
    static constexpr int PIECES = 4;
    static constexpr float OFFSET = 0.0f;

    static __device__ Lane place_of(unsigned char* shared, Lane*) { return {shared + 4 * lane_id()}; }
    static __device__ Bank place_of(unsigned char* shared, Bank*) { return {shared, 4u * lane_id()}; }
    static __device__ unsigned look_up(const Lane& lane, unsigned moved) { return *reinterpret_cast<const unsigned*>(lane.table + (moved & 0x7f80u)); }
    static __device__ unsigned look_up(const Bank& bank, unsigned moved) {
        return *reinterpret_cast<const unsigned*>(bank.table + lop3<(LOP3_A & LOP3_B) | LOP3_C>(moved, 0x7f80u, bank.place));
    }

    static __device__ Table prepare(unsigned char* shared, const float* codebook) {
        uint4* words = reinterpret_cast<uint4*>(shared);
        for (int byte = threadIdx.x; byte < 256; byte += blockDim.x) {
            const float low = HAS_ZEROS ? byte % 16 : codebook[byte % 16], high = HAS_ZEROS ? byte / 16 : codebook[byte / 16];
            const unsigned pair = pack_pair<T>(low, high);
#pragma unroll
            for (int i = 0; i < 8; ++i) words[8 * byte + (i + byte) % 8] = make_uint4(pair, pair, pair, pair);  // eight lanes, eight places
        }
        __syncthreads();
        return place_of(shared, static_cast<Table*>(nullptr));
    }

    // A byte holds k = 0 and 2, 4 and 6, 1 and 3, or 5 and 7 of its eight: x in the same order.
    static __device__ void arrange(uint4& x) {
        x = make_uint4(prmt(x.x, x.y, 0x5410), prmt(x.z, x.w, 0x5410), prmt(x.x, x.y, 0x7632), prmt(x.z, x.w, 0x7632));
    }
    static __device__ void decode(const uint4& words, int piece, Table table, unsigned (&pairs)[4]) {
        const unsigned word = piece == 0 ? words.x : piece == 1 ? words.y : piece == 2 ? words.z : words.w;
#pragma unroll
        for (int i = 0; i < 4; ++i) pairs[i] = look_up(table, i == 0 ? word << 7 : word >> (8 * i - 7));
    }
};
