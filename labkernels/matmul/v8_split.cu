// Matmul, v8: float32 from halves. C = activation(A B + bias) + residual in float32, multiplied by Hopper's tensor cores (sm_90a).
//   Idea      Tensor cores have no float32, but products of halves are exact in theirs. split_halves.cu writes each matrix as
//             scale * (high + low), 22 bits in two halves. Then A B is high high + high low + low high; what is left out, low low, is
//             2^-22 of it. The scales of rows and columns are powers of two that wait until the end, so all three products go into one
//             accumulator, the small ones first. It is the tensor cores' own, which cut off what does not fit where float32 rounds: over
//             4096 terms that alone would err five times as much as cuBLAS does. So each 64 of k begin a new sum, and the finished one is
//             added to float32 registers by the threads, while the tensor cores work on the next (SETS = 2) or for the other warpgroup.
//   Predicts  Three times the work of v7 in bf16, so a third of its speed: five times what FMAs can do. To split a matrix moves 8 bytes
//             an element, and 12 if its columns are dense: at 4096^3 a tenth of the time.
//   Measured  data/measured/h200/matmul.csv: 164 TFLOP/s at 2048^3, 3.3 times cuBLAS's float32, 220 at 8192^3, 4.3 times. While it was made: 218 at
//             2048^3 when the matrices are split already; an error against float64 of 1.7e-7, cuBLAS's 8e-7, with a new sum only every 128 of k
//             3.9e-7, every 256 8.4e-7, and neither is faster.
//   Wastes    The split matrices are written, and read again. tf32 would need neither scales nor another copy for its high part, and three
//             products as well; but wgmma multiplies tf32 at half the speed of halves, and a number takes twice the room in shared memory.
//
// Infinity times low, which may be 0 or have the other sign than high, would be NaN. So tiles with an infinite row or column, which has a
// negative scale, are multiplied once more, high with high alone: that is what their infinite rows and columns get, infinity or NaN.
#include "cluster.cuh"
#include "hopper.cuh"
#include "setmaxnreg.cuh"
#include "warp.cuh"
#include "wgmma.cuh"

constexpr int CONSUMERS = 2, ROWS = 64 * CONSUMERS, DEPTH = ROW_BYTES / 2;

// A sum times both of its scales, in the order in which nothing overflows or vanishes on the way.
__device__ __forceinline__ float scaled(float sum, float scale, float other) { return sum * fminf(scale, other) * fmaxf(scale, other); }

// a and b: tensor maps of (2 m, k) and (2 n, k), halves, all high ones before the low ones. c: one of C (m, n), which `out` points to; not
// looked at unless ALIGNED. If not, rows of C need not lie on 16 bytes, nor bias and residual on 8: elements are stored one by one.
// SETS accumulators take turns; one is added up after 64 * PROMOTE of k. CLUSTER blocks share their columns of B.
// GATED: C = activation(A B_gate + bias) * (A B_up + bias), n columns of gates, then of ups, in B and bias; no residual. As in v7.
template <int COLUMNS, int STAGES, int SLABS, int SETS, int PROMOTE, int CLUSTER, bool ALIGNED, int ACTIVATION, bool GATED = false>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    matmul_split(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c, float* out,
                 int m, int n, int k, const float* scale_a, const float* scale_b, const float* bias, const float* residual,
                 long long residual_stride, int band) {
    static_assert(SETS == 1 || SETS == 2 && PROMOTE == 1, "two sets take turns at every stage");
    static_assert(!GATED || CLUSTER == 1, "gates and ups are two boxes");
    constexpr int RESULTS = GATED ? COLUMNS / 2 : COLUMNS;  // columns of C in a tile
    using Memory = Layout<__half, 2 * ROWS, 2 * COLUMNS, STAGES, SLABS>;
    constexpr int LOW_A = ROWS * ROW_BYTES, LOW_B = COLUMNS * ROW_BYTES;  // from the higher halves of a stage to the lower ones
    extern __shared__ __align__(1024) char dynamic[];
    const Memory memory(dynamic);
    Mbarrier *full = memory.full(), *empty = memory.empty();
    __shared__ bool again[STAGES];  // of a tile that begins in this stage: is it multiplied once more?
    const int rank = CLUSTER > 1 ? cluster_rank() : 0;
    const int steps = (k + DEPTH - 1) / DEPTH;
    const int row_tiles = (m + ROWS * CLUSTER - 1) / (ROWS * CLUSTER), column_tiles = (n + RESULTS - 1) / RESULTS;
    const int tiles = row_tiles * column_tiles, clusters = gridDim.x / CLUSTER;
    const int warpgroup = threadIdx.x / GROUP, lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], CONSUMERS * CLUSTER * 4);
        }
        fence_mbarrier_init();
    }
    if (CLUSTER > 1) cluster_sync();
    else __syncthreads();

    if (warpgroup == CONSUMERS) {
        register_deallocate<40>();
        Ring<STAGES> ring;
        for (int index = blockIdx.x / CLUSTER; index < tiles && threadIdx.x < CONSUMERS * GROUP + 32; index += clusters) {
            const Tile tile(index, row_tiles, column_tiles, band);
            const int first_row = tile.row * CLUSTER * ROWS, row = first_row + rank * ROWS, column = tile.column * RESULTS;
            bool infinite = false;
            for (int i = lane; i < CLUSTER * ROWS; i += 32) infinite |= first_row + i < m && scale_a[first_row + i] < 0.0f;
            for (int i = lane; i < RESULTS; i += 32) infinite |= column + i < n && scale_b[column + i] < 0.0f;
            if constexpr (GATED)
                for (int i = lane; i < RESULTS; i += 32) infinite |= column + i < n && scale_b[n + column + i] < 0.0f;
            infinite = __any_sync(FULL_WARP, infinite);
            if (lane > 0) continue;
            for (int step = 0; step < (infinite ? 2 * steps : steps); ++step, ring.advance()) {
                const int depth = (step < steps ? step : step - steps) * DEPTH;
                Mbarrier* arrived = &full[ring.stage];
                if (CLUSTER > 1) mbarrier_wait_cluster(&empty[ring.stage], ring.parity ^ 1);
                else mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);
                if (step == 0) again[ring.stage] = infinite;
                mbarrier_arrive_expect_tx(arrived, Memory::STAGE_BYTES);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    tma_load(memory.a(ring.stage) + half * LOW_A, a, arrived, depth, row + half * m);
                    // Each block of a cluster fetches its share of B, for all of them.
                    constexpr int SHARE = COLUMNS / CLUSTER;
                    char* const share = memory.b(ring.stage) + half * LOW_B + rank * SHARE * ROW_BYTES;
                    const int first = column + half * n + rank * SHARE;
                    if constexpr (GATED) {
                        tma_load(share, b, arrived, depth, column + half * 2 * n);
                        tma_load(share + RESULTS * ROW_BYTES, b, arrived, depth, column + half * 2 * n + n);
                    } else if (CLUSTER > 1) tma_load_multicast(share, b, arrived, (1 << CLUSTER) - 1, depth, first);
                    else tma_load(share, b, arrived, depth, first);
                }
            }
        }
        if (CLUSTER > 1) cluster_sync();  // what the other blocks send here must find this one's shared memory
        return;
    }

    register_allocate<232>();
    const int thread = threadIdx.x % GROUP;
    float d[SETS][COLUMNS / 2], sums[COLUMNS / 2];
    Ring<STAGES> ring;
    int slab = 0;
    // Waits for the next stage and multiplies it, as a group of wgmma: into a new sum, or added to the one there is.
    auto multiply = [&](float(&to)[COLUMNS / 2], bool added, bool only_high) {
        mbarrier_wait(&full[ring.stage], ring.parity);
        wgmma_fence();
        const MatrixDescriptor high_a = matrix_descriptor(memory.a(ring.stage) + warpgroup * 64 * ROW_BYTES, 0, 8 * ROW_BYTES, 128);
        const MatrixDescriptor high_b = matrix_descriptor(memory.b(ring.stage), 0, 8 * ROW_BYTES, 128);
        if (!only_high) {
#pragma unroll
            for (int i = 0; i < ROW_BYTES / 32; ++i) {
                wgmma<__half>(to, high_a + 2 * i, high_b + (LOW_B >> 4) + 2 * i, added || i > 0);
                wgmma<__half>(to, high_a + (LOW_A >> 4) + 2 * i, high_b + 2 * i, true);
            }
        }
#pragma unroll
        for (int i = 0; i < ROW_BYTES / 32; ++i) wgmma<__half>(to, high_a + 2 * i, high_b + 2 * i, added || !only_high || i > 0);
        wgmma_commit();
        ring.advance();
    };
    // The stage before the last `ago` ones may be filled again.
    auto release = [&](int ago) {
        const int stage = ring.stage >= ago + 1 ? ring.stage - ago - 1 : ring.stage - ago - 1 + STAGES;
        __syncwarp();
        if (CLUSTER > 1) {
            if (lane < CLUSTER) mbarrier_arrive_remote_read(&empty[stage], lane);
        } else if (lane == 0) {
            mbarrier_arrive(&empty[stage]);
        }
    };
    // The sums in `of` are complete but for the last `pending` groups of wgmma, which work on others: they are added up.
    auto promote = [&](int pending, float(&of)[COLUMNS / 2]) {
        if (pending == 1) wgmma_wait<1>(of);
        else wgmma_wait<0>(of);
        release(pending);
#pragma unroll
        for (int i = 0; i < COLUMNS / 2; ++i) sums[i] += of[i];
    };

    for (int index = blockIdx.x / CLUSTER; index < tiles; index += clusters) {
        const Tile tile(index, row_tiles, column_tiles, band);
        const int row = (tile.row * CLUSTER + rank) * ROWS + warpgroup * 64, column = tile.column * RESULTS;
#pragma unroll
        for (int i = 0; i < COLUMNS / 2; ++i) sums[i] = 0.0f;
        mbarrier_wait(&full[ring.stage], ring.parity);
        const bool infinite = again[ring.stage];
        if constexpr (SETS == 2) {
            multiply(d[0], false, false);
            int step = 1;
            for (; step + 1 < steps; step += 2) {
                multiply(d[1], false, false);
                promote(1, d[0]);
                multiply(d[0], false, false);
                promote(1, d[1]);
            }
            if (step < steps) {
                multiply(d[1], false, false);
                promote(1, d[0]);
                promote(0, d[1]);
            } else {
                promote(0, d[0]);
            }
        } else {
            for (int step = 0; step < steps; step += PROMOTE) {
                multiply(d[0], false, false);
                for (int part = 1; part < PROMOTE && step + part < steps; ++part) {
                    multiply(d[0], true, false);
                    wgmma_wait<1>();
                    release(1);
                }
                promote(0, d[0]);
            }
        }
        if (infinite) {
            for (int step = 0; step < steps; ++step) {
                multiply(d[0], step > 0, true);
                wgmma_wait<0>(d[0]);
                release(0);
            }
        }

        // The sums lie as wgmma leaves them: pairs of neighbours, first of a row and then of the row 8 below it.
        constexpr int WIDTH = ROW_BYTES / 4, OWN = SLABS / CONSUMERS;  // columns of a slab, slabs of this warpgroup
        const int own_row = thread / 32 * 16 + lane / 4, own_column = lane % 4 * 2;
        float scale_row[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) scale_row[i] = row + own_row + 8 * i < m ? scale_a[row + own_row + 8 * i] : 0.0f;
#pragma unroll
        for (int first = 0; first < RESULTS; first += WIDTH, ++slab) {
            char* const staged = memory.slab(warpgroup * OWN + slab % OWN);
            if (ALIGNED) {
                if (thread == 0) tma_wait_read<OWN - 1>();
                named_barrier_sync(1 + warpgroup, GROUP);
            }
#pragma unroll
            for (int block = 0; block < WIDTH / 8; ++block) {
                const int at = first + 8 * block, to_column = column + at + own_column, count = min(n - to_column, 2);
                float scale_column[2];
#pragma unroll
                for (int j = 0; j < 2; ++j) scale_column[j] = j < count ? scale_b[to_column + j] : 0.0f;
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int staged_row = own_row + 8 * i, to_row = row + staged_row;
                    float pair[2];
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const int place = at / 2 + 2 * i + j;
                        const bool chosen = infinite && (scale_row[i] < 0.0f || scale_column[j] < 0.0f);
                        pair[j] = scaled(chosen ? d[0][place] : sums[place], fabsf(scale_row[i]), fabsf(scale_column[j]));
                        if constexpr (GATED) {
                            const int other = place + COLUMNS / 4;
                            const float scale_up = j < count ? scale_b[n + to_column + j] : 0.0f;
                            const bool of_high = infinite && (scale_row[i] < 0.0f || scale_up < 0.0f);
                            float up = scaled(of_high ? d[0][other] : sums[other], fabsf(scale_row[i]), fabsf(scale_up));
                            if (bias != nullptr && j < count) pair[j] += bias[to_column + j], up += bias[n + to_column + j];
                            pair[j] = activate<ACTIVATION>(pair[j]) * up;
                        }
                    }
                    if constexpr (ALIGNED) {
                        if (!GATED && to_row < m && count > 0) finish<ACTIVATION>(pair, bias, residual, residual_stride, to_row, to_column);
                        char* const place = staged + staged_row * ROW_BYTES + ((2 * block + lane % 4 / 2) ^ staged_row % 8) * 16;
                        *reinterpret_cast<float2*>(place + lane % 2 * 8) = make_float2(pair[0], pair[1]);
                    } else {
                        float* const to = out + to_row * (long long)n + to_column;
#pragma unroll
                        for (int j = 0; j < 2; ++j)
                            if (to_row < m && j < count)
                                to[j] = GATED ? pair[j] : finish<ACTIVATION>(pair[j], bias, residual, residual_stride, to_row, to_column + j);
                    }
                }
            }
            if (ALIGNED) {
                fence_proxy_async_shared();
                named_barrier_sync(1 + warpgroup, GROUP);
                if (thread == 0) {
                    tma_store(c, staged, column + first, row);
                    tma_commit();
                }
            }
        }
    }
    if (ALIGNED && thread == 0) tma_wait_read<0>();
    if (CLUSTER > 1) cluster_sync();
}
