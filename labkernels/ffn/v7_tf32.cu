// FFN, v7: float32 for few tokens, each product three times in tf32. Two kernels, each of which reads its weights once, at the speed of memory.
//   Idea      Up to 64 tokens the weights' bytes are the limit, if only the multiplications keep up. FMAs do not: at 16 tokens they need 4 reads
//             of shared memory for 64. A float32 is two tf32 numbers, w = high + low, 22 bits; low x, high x_low and high x_high are three
//             instructions of tensor cores for 16 rows and 8 tokens. What a lane copied is its A fragment (see gemv/stream.cuh): which k a column
//             of A stands for is nobody's business, as long as B has the same one. Warps share out k; a tile's gates and ups meet in one thread.
//             One token needs one FMA a weight, and up to four are left to FMAs.
//   Predicts  541 MB of weights of 4096 x 11008, 117 us, for 1 and for 16 tokens. For 64 tensor cores take 26 G products, 180 us.
//   Measured  data/measured/h200/ffn.csv, 4096 x 11008, beside torch.compile: 1 token 148 us (161), 16 tokens 196 (311), 64 tokens 377 (428).
//             While it was made: tf32 for one token, too, 173. Three products that wait for each other, one eight of tokens after the other,
//             made it 433 for 64.
//   Wastes    Tokens are read for every 32 or 48 rows of weights, out of L2: with 64 tokens 1.3 times the bytes that the weights have. And 64 tokens leave
//             two warps on a scheduler, too few for tensor cores.
//
// Tensor cores cut off what float32 would round. So each 8 of k begin a new sum, and the finished one is added by the thread. Infinity has no low
// part, and becomes NaN: an element that is NaN is worked out again by FMAs.
#include "cp_async.cuh"
#include "epilogue.cuh"
#include "fence.cuh"
#include "mma.cuh"
#include "stream_load.cuh"
#include "warp.cuh"

constexpr int WARPS = 8, STEP = 16;  // of k

struct Split {
    unsigned high, low;
    __device__ __forceinline__ explicit Split(float value) {
        high = (__float_as_uint(value) + 0x1000u) & 0xffffe000u;
        low = __float_as_uint(value - __uint_as_float(high));
    }
};

__device__ inline float plain_dot(const float* a, const float* b, int k) {
    float sum = 0.0f;
    for (int i = 0; i < k; ++i) sum = __fmaf_rn(a[i], b[i], sum);
    return sum;
}

// y (tokens, rows) = act(x w^T + bias): x (tokens, k), w (rows, k), or for GATED (2 rows, k), gates before ups. A tile is 16 * TILES rows of w;
// a warp's step 16 of k, for 8 * EIGHTS tokens; without EIGHTS for up to FEW, by FMAs. k is a multiple of 16, rows of x and w lie on 16 bytes.
template <bool GATED, int ACTIVATION, int TILES, int EIGHTS, int AHEAD, int FEW = 1>
__global__ void __launch_bounds__(32 * WARPS, TILES * EIGHTS <= 4 ? 2 : 1)
ffn_tf32(const float* x, const float* w, const float* bias, float* y, int tokens, int k, int rows, long long x_stride, long long w_stride) {
    constexpr int OF_TOKENS = EIGHTS > 0 ? EIGHTS : 1, PIECES = 2 * TILES + OF_TOKENS;  // 512 bytes each, of a step
    constexpr int STRIDE = 8 * OF_TOKENS + 4;
    constexpr int GROUP = TILES >= 4 || EIGHTS < 2 ? 1 : TILES >= 2 || EIGHTS < 4 ? 2 : 4;  // eights at a time: products that need not wait
    extern __shared__ __align__(16) uint4 dynamic[];
    const int lane = lane_id(), warp = warp_id(), r = lane / 4, j = lane % 4;
    uint4* const ring = dynamic + warp * AHEAD * PIECES * 32;
    float* const sums = reinterpret_cast<float*>(dynamic + WARPS * AHEAD * PIECES * 32);  // (16 * TILES, STRIDE)
    const int in_tile = (GATED ? 8 : 16) * TILES, tiles = (rows + in_tile - 1) / in_tile;
    const int each = k / STEP / WARPS, more = k / STEP % WARPS, steps = each + (warp < more), first = STEP * (warp * each + min(warp, more)) + 4 * j;
    const auto row_of = [&](int tile, int t, int h, int at) {  // of w: row `at` of the upper (h = 0) or lower eight of the tile's t-th sixteen
        return GATED ? min((tile * TILES + t) * 8 + at, rows - 1) + h * rows : min((tile * TILES + t) * 16 + 8 * h + at, rows - 1);
    };

    int coming = blockIdx.x, ahead = 0;  // the tile and its step that are asked for next
    const auto fetch_weights = [&](int slot) {
        if (coming >= tiles || steps == 0) return;
        uint4* const target = ring + slot * PIECES * 32 + lane;
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
            for (int h = 0; h < 2; ++h) cp_async_stream(target + (2 * t + h) * 32, w + row_of(coming, t, h, r) * w_stride + first + STEP * ahead);
        }
    };
    const auto fetch_tokens = [&](int slot, int step) {
        uint4* const target = ring + slot * PIECES * 32 + 2 * TILES * 32 + lane;
#pragma unroll
        for (int e = 0; e < OF_TOKENS; ++e) {
            if (EIGHTS > 0 || r < FEW) cp_async_l2(target + e * 32, x + min(8 * e + r, tokens - 1) * x_stride + first + STEP * step);
        }
    };
    const auto advance = [&]() {
        if (++ahead >= steps) {
            coming += gridDim.x;
            ahead = 0;
        }
    };
    for (int slot = 0; slot < AHEAD; ++slot) {
        fetch_weights(slot);
        advance();
    }
    grid_dependency_wait();
    grid_dependency_launch();
    for (int slot = 0; slot < AHEAD; ++slot) {
        if (steps > 0) fetch_tokens(slot, slot % steps);
        cp_async_commit();
    }

    int slot = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float total[TILES][OF_TOKENS][4] = {}, dot[TILES][2][FEW] = {};
        for (int step = 0; step < steps; ++step) {
            cp_async_wait<AHEAD - 1>();
            const uint4* const arrived = ring + slot * PIECES * 32;
            if constexpr (EIGHTS == 0) {
                __syncwarp();  // tokens were copied by other lanes
                float4 b[FEW];
#pragma unroll
                for (int f = 0; f < FEW; ++f) b[f] = reinterpret_cast<const float4*>(arrived)[2 * TILES * 32 + 4 * f + j];
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const float4 a = reinterpret_cast<const float4*>(arrived)[(2 * t + h) * 32 + lane];
#pragma unroll
                        for (int f = 0; f < FEW; ++f) {
                            dot[t][h][f] += __fmaf_rn(a.x, b[f].x, a.y * b[f].y) + __fmaf_rn(a.z, b[f].z, a.w * b[f].w);
                        }
                    }
                }
                __syncwarp();  // before other lanes overwrite the tokens
            } else {
#pragma unroll 1
                for (int s = 0; s < 2; ++s) {  // eight of k; unrolled, all of b's loads come first, and registers spill
                    unsigned a_high[TILES][4], a_low[TILES][4];
#pragma unroll
                    for (int t = 0; t < TILES; ++t) {
#pragma unroll
                        for (int h = 0; h < 2; ++h) {
                            const float2 pair = reinterpret_cast<const float2*>(arrived + (2 * t + h) * 32 + lane)[s];
                            const Split left(pair.x), right(pair.y);
                            a_high[t][h] = left.high, a_high[t][h + 2] = right.high;
                            a_low[t][h] = left.low, a_low[t][h + 2] = right.low;
                        }
                    }
#pragma unroll
                    for (int e = 0; e < EIGHTS; e += GROUP) {
                        unsigned b_high[GROUP][2], b_low[GROUP][2];
                        float sum[GROUP][TILES][4] = {};
#pragma unroll
                        for (int g = 0; g < GROUP; ++g) {
                            const float2 pair = reinterpret_cast<const float2*>(arrived + (2 * TILES + e + g) * 32 + lane)[s];
                            const Split upper(pair.x), lower(pair.y);
                            b_high[g][0] = upper.high, b_high[g][1] = lower.high;
                            b_low[g][0] = upper.low, b_low[g][1] = lower.low;
                        }
#pragma unroll
                        for (int product = 0; product < 3; ++product) {
#pragma unroll
                            for (int i = 0; i < GROUP * TILES; ++i) {
                                const int g = i / TILES, t = i % TILES;
                                mma_m16n8k8<tf32>(sum[g][t], product == 0 ? a_low[t] : a_high[t], product == 1 ? b_low[g] : b_high[g], sum[g][t]);
                            }
                        }
#pragma unroll
                        for (int i = 0; i < 4 * GROUP * TILES; ++i) {
                            const int g = i / 4 / TILES, t = i / 4 % TILES;
                            total[t][e + g][i % 4] += sum[g][t][i % 4];
                        }
                    }
                }
            }
            fetch_weights(slot);
            if (coming < tiles) fetch_tokens(slot, ahead);
            cp_async_commit();
            advance();
            slot = slot + 1 == AHEAD ? 0 : slot + 1;
        }
        if constexpr (EIGHTS == 0) {
#pragma unroll
            for (int i = 0; i < 2 * TILES * FEW; ++i) {
                float& sum = dot[i / FEW / 2][i / FEW % 2][i % FEW];
                sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            }
        }
        const auto add = [&](int turn, int row, int token, float value) {
            float& place = sums[row * STRIDE + token];
            place = turn == 0 ? value : place + value;
        };
        for (int turn = 0; turn < WARPS; ++turn) {  // in this order, so that the same inputs give the same bits
            if (warp == turn) {
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    if constexpr (EIGHTS == 0) {
#pragma unroll
                        for (int i = 0; i < 2 * FEW; ++i) {
                            if (j == 0) add(turn, 16 * t + 8 * (i / FEW) + r, i % FEW, dot[t][i / FEW][i % FEW]);
                        }
                    } else {
#pragma unroll
                        for (int i = 0; i < 4 * EIGHTS; ++i) add(turn, 16 * t + r + i / 2 % 2 * 8, i / 4 * 8 + 2 * j + i % 2, total[t][i / 4][i % 4]);
                    }
                }
            }
            __syncthreads();
        }
        for (int i = threadIdx.x; i < in_tile * tokens; i += 32 * WARPS) {
            const int unit = i % in_tile, token = i / in_tile, row = tile * in_tile + unit;
            if (row >= rows) continue;
            const auto sum_of = [&](int at, int of_w) {
                const float sum = sums[at * STRIDE + token];
                return (sum == sum ? sum : plain_dot(x + token * x_stride, w + of_w * w_stride, k)) + (bias == nullptr ? 0.0f : bias[of_w]);
            };
            float value;
            if constexpr (GATED) {
                const int at = unit / 8 * 16 + unit % 8;
                value = gated<ACTIVATION, float>(sum_of(at, row), sum_of(at + 8, rows + row));
            } else {
                value = activate<ACTIVATION, float>(sum_of(unit, row));
            }
            y[static_cast<long long>(token) * rows + row] = value;
        }
        __syncthreads();
    }
}
