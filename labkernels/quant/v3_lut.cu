// Quantised matmul, v3: by lookup table. Any 16 numbers a code may stand for: NF4, a codebook learnt from the weight; int4 as well.
//   Idea      Arithmetic knows only evenly spaced numbers. A table of all 256 bytes has two codes' 16-bit floats in one word: a shift, a
//             mask and a load for two numbers. Random lookups would meet in a bank 3 or 4 at a time; so each of the 32 banks has a table
//             of its own, and a lane looks only into that of its bank: 32 KB, and no conflict ever.
//   Predicts  One shared load for two numbers, 64 numbers a clock and SM; the stream brings 37. Within 1.15 of v2.
//   Measured  data/measured/h200/quant_matmul.csv
//   Wastes    32 KB of tables in every block.
#include "gemv.cuh"
#include "pack.cuh"

struct Lane {
    const unsigned char* table;  // of this lane's bank: the pair of byte b at 128 * b
};

// Codes of 4 bits, looked up two at a time. With zeros it is int4, and the codebook 0, 1, ... 15.
template <class Element, bool HAS_ZEROS>
struct Codes {
    using T = Element;
    using Table = Lane;
    static constexpr bool GROUPED = true, ASYMMETRIC = HAS_ZEROS;
    static constexpr int PIECES = 4;
    static constexpr float OFFSET = 0.0f;

    static __device__ Table prepare(unsigned char* shared, const float* codebook) {
        uint4* words = reinterpret_cast<uint4*>(shared);
        for (int byte = threadIdx.x; byte < 256; byte += blockDim.x) {
            const float low = HAS_ZEROS ? byte % 16 : codebook[byte % 16], high = HAS_ZEROS ? byte / 16 : codebook[byte / 16];
            const unsigned pair = pack_pair<T>(low, high);
#pragma unroll
            for (int i = 0; i < 8; ++i) words[8 * byte + (i + byte) % 8] = make_uint4(pair, pair, pair, pair);  // eight lanes, eight places
        }
        __syncthreads();
        return {shared + 4 * lane_id()};
    }

    // A byte holds k = 0 and 2, 4 and 6, 1 and 3, or 5 and 7 of its eight: x in the same order.
    static __device__ void arrange(uint4& x) {
        x = make_uint4(prmt(x.x, x.y, 0x5410), prmt(x.z, x.w, 0x5410), prmt(x.x, x.y, 0x7632), prmt(x.z, x.w, 0x7632));
    }
    static __device__ void decode(const uint4& words, int piece, Table lane, unsigned (&pairs)[4]) {
        const unsigned word = piece == 0 ? words.x : piece == 1 ? words.y : piece == 2 ? words.z : words.w;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned offset = (i == 0 ? word << 7 : word >> (8 * i - 7)) & 0x7f80u;
            pairs[i] = *reinterpret_cast<const unsigned*>(lane.table + offset);
        }
    }
};

// As quant_matmul_gemv. Dynamic shared memory: WARPS * x_bytes, and 32 KB for the tables.
template <class T, bool HAS_ZEROS, int SPANS, int ROWS, int WARPS, int AHEAD, int BLOCKS>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS)
quant_matmul_lut(const T* x, const void* packed, const void* scales, const float* codebook, T* y, int m, int n, int k,
                 long long x_stride, long long row_bytes, int groups, Parts parts, int aligned, int x_bytes) {
    extern __shared__ __align__(16) unsigned char shared[];
    stream<Codes<T, HAS_ZEROS>, SPANS, ROWS, WARPS, AHEAD>(x, static_cast<const unsigned char*>(packed), scales, codebook, y, m, n, k, x_stride,
                                                             row_bytes, groups, parts, aligned, x_bytes, shared);
}
