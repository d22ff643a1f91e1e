// v7: matmul on Hopper (sm_90a), activation(A B + bias) + residual for bf16 and fp16, and fp8 for scaled_matmul, summed in float32.
//
// The idea. Three engines, and each one has its own thread to drive it.
//
//   producer    one thread of a warpgroup that does nothing else. It asks the copy engine (TMA) for tiles of A and B, four stages ahead; the
//               engine computes the addresses, swizzles, fills with zeros what lies outside, and tells an mbarrier when all bytes are there.
//   consumers   two warpgroups, 64 x 256 of C each. wgmma reads both operands from shared memory, 64 x 256 x 16 in one instruction, so a
//               byte from shared memory is used by four warps. One group of wgmmas is always in flight while the next is issued.
//   stores      a finished tile goes to shared memory (stmatrix), and the copy engine writes it while the next tile is multiplied.
//
// A block stays and takes every 132nd tile, in bands of 16 rows of tiles, so that blocks at work share rows of A and columns of B in L2. In a
// cluster of two blocks, one above the other, each fetches half of B's tile for both (multicast).
//
// What it predicts. 128 x 256 of C take 128 x 256 x 64 / 2048 = 1024 clocks a stage, which reads 48 KB: 48 bytes a clock, and 80 of the 128
// that shared memory gives. Only the tensor cores are busy all the time.
//
// What it measured: data/measured/h200/matmul.csv, bf16 at 4096^3: 784 TFLOP/s, cuBLAS 782 TFLOP/s. On the way:
//
//   fence.proxy.async in the epilogue also waited for all stores to global memory; with .shared::cta   743 -> 781
//   a cluster's mbarrier.arrive.release.cluster waited for all memory, too; without release            502 -> 781
//   a cluster of two                                                                                   781 -> 781: L2 keeps up without
//   64 x 256 tiles, one consumer 619; 128 x 128 745; 128 x 192 669 (fills 132 multiprocessors worse)
//
// At large sizes the GPU lowers its clock, and a cooler kernel is a faster one: at 8192^3 746 TFLOP/s, cuBLAS 686, and 791, cuBLAS 710, where B is
// dense along its columns; at 8192 x 8192 x 28672 715, cuBLAS 692.
//
// GATED, of the first half of a SwiGLU network: C = silu(A B_gate) * (A B_up), where B has the columns of all gates before those of all ups. A tile
// of B is half gates and half the ups that belong to them, so a thread has both sums, and neither goes through memory. Figures: ffn.csv, v4_hopper.
//
// What follows a product (finish_tile.cuh). At first it cost more than a walk of its own: bias and GELU took 12.2 us at 1024^3 and 220 at 4096^3, SiLU and a
// residual 12.5 and 246. That was 47 and 55 instructions a sum, and 64 loads, of a bias or of 4 bytes of a residual, each waited for before the next one was
// asked for. Now it is 14 and 10 instructions, SiLU's two approximations take 16 clocks, and no load is waited for. Predicted were 7 us, 183 and 187; it
// measured 6.9 and 7.2 us, 181 and 185 (torch.compile 9.9 and 9.6, 203 and 196; cuBLAS and kernels behind it 9.9 and 12.9, 212 and 243). Tried beside it,
// five shapes in one run: one consumer a stage or two late, and a GELU of degree 5, won nothing; a tile finished and stored strip by strip won 3% at 2048^3
// and lost 2% at 4096 x 11008 x 4096. Two warpgroups with tiles of 128 x 128 in turns, so that one multiplies while the other finishes, took 1.9 times as
// long, and the compiler's log said why: changing sums in place made ptxas serialise wgmma (C7515). With copies of the sums changed they took 1.7 times as
// long at 1024^3 (64 tiles, one a block: no turns), 5% longer at 4096^3, and as long at 4096 x 11008 x 4096; they read 64 bytes a clock from L2 for 48.
//
// What it still wastes: the last wave of tiles (4096^3 has 512, that is 3.9 waves), and the time in which nobody multiplies under a tile's epilogue, for
// both consumers end their tiles at the same time.
#include "cluster.cuh"
#include "finish_tile.cuh"
#include "setmaxnreg.cuh"
#include "wgmma.cuh"

template <class T, class Out, int ROWS, int COLUMNS, int CONSUMERS, int STAGES, int SLABS, int CLUSTER, bool A_COLUMNS, bool B_ROWS, bool FINISH, int ACTIVATION,
          bool GATED = false>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    matmul_hopper(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c,
                  const __grid_constant__ TensorMap residual, int m, int n, int k, const float* scale_a, const float* scale_b, const Out* bias,
                  int has_residual, int band) {
    using Memory = Layout<T, ROWS, COLUMNS, STAGES, SLABS>;
    using Residual = ResidualStages<Memory, Out, ROWS, COLUMNS>;
    constexpr int DEPTH = Memory::DEPTH, PARTS = ROWS / CONSUMERS / 64, PANEL = ROW_BYTES / sizeof(T);
    constexpr int RESULTS = GATED ? COLUMNS / 2 : COLUMNS;  // columns of C in a tile; n counts those of C
    constexpr bool SCALED = sizeof(T) == 1;
    static_assert(!GATED || CLUSTER == 1 && !B_ROWS, "gates and ups are two boxes of rows of 128 bytes of k");
    extern __shared__ __align__(1024) char dynamic[];
    const Memory memory(dynamic);
    Mbarrier *full = memory.full(), *empty = memory.empty();
    const int rank = CLUSTER > 1 ? cluster_rank() : 0;
    const int steps = (k + DEPTH - 1) / DEPTH;
    const int row_tiles = (m + ROWS * CLUSTER - 1) / (ROWS * CLUSTER), column_tiles = (n + RESULTS - 1) / RESULTS;
    const int tiles = row_tiles * column_tiles, clusters = gridDim.x / CLUSTER;
    const int warpgroup = threadIdx.x / GROUP;

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
        if (threadIdx.x == CONSUMERS * GROUP) {
            Ring<STAGES> ring;
            auto wait_empty = [&](const Ring<STAGES>& at) {
                if (CLUSTER > 1) mbarrier_wait_cluster(&empty[at.stage], at.parity ^ 1);
                else mbarrier_wait(&empty[at.stage], at.parity ^ 1);
            };
            for (int index = blockIdx.x / CLUSTER; index < tiles; index += clusters) {
                const Tile tile(index, row_tiles, column_tiles, band);
                const int row = (tile.row * CLUSTER + rank) * ROWS, column = tile.column * RESULTS;
                for (int step = 0; step < steps; ++step, ring.advance()) {
                    const int depth = step * DEPTH;
                    Mbarrier* arrived = &full[ring.stage];
                    wait_empty(ring);
                    mbarrier_arrive_expect_tx(arrived, Memory::STAGE_BYTES);
                    if (A_COLUMNS)
                        for (int i = 0; i < ROWS / PANEL; ++i)
                            tma_load(memory.a(ring.stage) + i * DEPTH * ROW_BYTES, a, arrived, row + i * PANEL, depth);
                    else
                        tma_load(memory.a(ring.stage), a, arrived, depth, row);
                    // Each block of a cluster fetches its share of B, for all of them.
                    constexpr int SHARE = COLUMNS / CLUSTER;
                    char* share = memory.b(ring.stage) + rank * SHARE * ROW_BYTES;
                    const int first = column + rank * SHARE;
                    if constexpr (GATED) {
                        tma_load(share, b, arrived, depth, column);
                        tma_load(share + RESULTS * ROW_BYTES, b, arrived, depth, n + column);
                    } else if (B_ROWS) {
                        for (int i = 0; i < SHARE / PANEL; ++i)
                            if (CLUSTER > 1) tma_load_multicast(share + i * DEPTH * ROW_BYTES, b, arrived, (1 << CLUSTER) - 1, first + i * PANEL, depth);
                            else tma_load(share + i * DEPTH * ROW_BYTES, b, arrived, first + i * PANEL, depth);
                    } else {
                        if (CLUSTER > 1) tma_load_multicast(share, b, arrived, (1 << CLUSTER) - 1, depth, first);
                        else tma_load(share, b, arrived, depth, first);
                    }
                }
                if constexpr (FINISH && !GATED) {
                    for (int i = 0; has_residual && i < Residual::COUNT; ++i, ring.advance()) {
                        Mbarrier* arrived = &full[ring.stage];
                        wait_empty(ring);
                        mbarrier_arrive_expect_tx(arrived, Residual::strips(i) * Residual::STRIP_BYTES);
                        for (int strip = 0; strip < Residual::strips(i); ++strip)
                            tma_load(memory.a(ring.stage) + strip * Residual::STRIP_BYTES, residual, arrived,
                                     column + (i * Residual::EACH + strip) * Residual::WIDTH, row);
                    }
                }
            }
        }
        if (CLUSTER > 1) cluster_sync();  // what the other blocks send here must find this one's shared memory
        return;
    }

    register_allocate<CONSUMERS == 2 ? 232 : CONSUMERS == 1 ? 256 - 8 : 152>();
    const int thread = threadIdx.x % GROUP, lane = threadIdx.x % 32;
    float d[PARTS][COLUMNS / 2];
    Ring<STAGES> ring;
    int slab = 0;
    auto release = [&](int stage) {
        __syncwarp();
        if (CLUSTER > 1) {
            if (lane < CLUSTER) mbarrier_arrive_remote_read(&empty[stage], lane);
        } else if (lane == 0) {
            mbarrier_arrive(&empty[stage]);
        }
    };
    for (int index = blockIdx.x / CLUSTER; index < tiles; index += clusters) {
        const Tile tile(index, row_tiles, column_tiles, band);
        const int row = (tile.row * CLUSTER + rank) * ROWS + warpgroup * PARTS * 64, column = tile.column * RESULTS;
        OfColumns<Out, COLUMNS> bias_of;
        OfColumns<float, COLUMNS> scale_of;
        float scale_of_row[PARTS][2] = {};
        if constexpr (FINISH && !GATED) {
            bias_of.load(bias, column, n);
            if (SCALED) {
                scale_of.load(scale_b, column, n);
                for (int i = 0; i < 2 * PARTS; ++i) {
                    const int r = row + i / 2 * 64 + thread / 32 * 16 + lane / 4 + i % 2 * 8;
                    scale_of_row[i / 2][i % 2] = r < m ? scale_a[r] : 0.0f;
                }
            }
        }
        int before = 0;
        for (int step = 0; step < steps; ++step, ring.advance()) {
            mbarrier_wait(&full[ring.stage], ring.parity);
            wgmma_fence();
            const char* tile_a = memory.a(ring.stage) + warpgroup * PARTS * 64 * ROW_BYTES;
            const MatrixDescriptor slab_b = matrix_descriptor(memory.b(ring.stage), DEPTH * ROW_BYTES, 8 * ROW_BYTES, 128);
#pragma unroll
            for (int i = 0; i < ROW_BYTES / 32; ++i)
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    const MatrixDescriptor slab_a = matrix_descriptor(tile_a + part * 64 * ROW_BYTES, DEPTH * ROW_BYTES, 8 * ROW_BYTES, 128);
                    // 32 bytes of k further: within the row, or, where k goes down, 16 rows
                    const int next_a = A_COLUMNS ? 16 * ROW_BYTES : 32, next_b = B_ROWS ? 16 * ROW_BYTES : 32;
                    wgmma<T, A_COLUMNS, B_ROWS>(d[part], slab_a + (i * next_a >> 4), slab_b + (i * next_b >> 4), step + i > 0);
                }
            wgmma_commit();
            wgmma_wait<1>();
            if (step > 0) release(before);
            before = ring.stage;
        }
#pragma unroll
        for (int part = 0; part < PARTS; ++part) wgmma_wait<0>(d[part]);
        release(before);

        constexpr int OWN = SLABS / CONSUMERS;  // slabs of this warpgroup
        if constexpr (GATED) {
            const Out* const nothing = nullptr;
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                float(&gates)[COLUMNS / 4] = reinterpret_cast<float(&)[COLUMNS / 4]>(d[part]);
                const float* const ups = &d[part][COLUMNS / 4];
#pragma unroll
                for (int i = 0; i < COLUMNS / 4; i += 2) {
                    const int r = row + part * 64 + thread / 32 * 16 + lane / 4 + (i & 2 ? 8 : 0), col = column + i / 4 * 8 + lane % 4 * 2;
                    float gate[2] = {gates[i], gates[i + 1]}, up[2] = {ups[i], ups[i + 1]};
                    if (FINISH && r < m && col < n) {
                        if (scale_a != nullptr) {
                            gate[0] *= scale_a[r] * scale_b[col], gate[1] *= scale_a[r] * scale_b[col + 1];
                            up[0] *= scale_a[r] * scale_b[n + col], up[1] *= scale_a[r] * scale_b[n + col + 1];
                        }
                        finish<0>(up, bias == nullptr ? bias : bias + n, nothing, 0, r, col);
                        finish<0>(gate, bias, nothing, 0, r, col);
                    }
                    gates[i] = gated<ACTIVATION, Out>(gate[0], up[0]);
                    gates[i + 1] = gated<ACTIVATION, Out>(gate[1], up[1]);
                }
                store_tile<Out, RESULTS, OWN>(c, memory.slab(warpgroup * OWN), slab, gates, row + part * 64, column, warpgroup, [](float(&)[2], int, int) {});
            }
        } else {
            if constexpr (FINISH) {
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    if (SCALED) scale_sums<COLUMNS>(d[part], scale_of_row[part], scale_of);
                    if (bias != nullptr) add_bias<COLUMNS>(d[part], bias_of);
#pragma unroll
                    for (float& sum : d[part]) sum = activate_tile<ACTIVATION, Out>(sum);
                }
                if (has_residual)
#pragma unroll
                    for (int i = 0; i < Residual::COUNT; ++i, ring.advance()) {
                        mbarrier_wait(&full[ring.stage], ring.parity);
#pragma unroll
                        for (int strip = 0; strip < Residual::EACH; ++strip)
#pragma unroll
                            for (int part = 0; part < PARTS; ++part)
                                if (i * Residual::EACH + strip < Residual::STRIPS)
                                    add_strip<Out, Residual::WIDTH>(
                                        d[part], (i * Residual::EACH + strip) * Residual::WIDTH,
                                        memory.a(ring.stage) + strip * Residual::STRIP_BYTES + (warpgroup * PARTS + part) * 64 * Residual::ROW);
                        release(ring.stage);
                    }
            }
#pragma unroll
            for (int part = 0; part < PARTS; ++part)
                store_tile<Out, COLUMNS, OWN>(c, memory.slab(warpgroup * OWN), slab, d[part], row + part * 64, column, warpgroup, [](float(&)[2], int, int) {});
        }
    }
    if (thread == 0) tma_wait_read<0>();
    if (CLUSTER > 1) cluster_sync();
}
