// What the fp8 matmuls with sums in float32 share: a block's start, and the thread that fetches its stages.
#pragma once
#include "../matmul/hopper.cuh"
#include "cluster.cuh"
#include "setmaxnreg.cuh"
#include "wgmma.cuh"

constexpr int CONSUMERS = 2, DEPTH = ROW_BYTES;

// The barriers of the stages, for consumers of CLUSTER blocks; and no block goes on before all are ready.
template <int STAGES, int CLUSTER, class Memory>
__device__ __forceinline__ void start(const Memory& memory) {
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&memory.full()[s], 1);
            mbarrier_init(&memory.empty()[s], CONSUMERS * CLUSTER * 4);
        }
        fence_mbarrier_init();
    }
    if (CLUSTER > 1) cluster_sync();
    else __syncthreads();
}

// The producer's part: ROWS rows of A and, for all blocks of the cluster, this one's share of COLUMNS columns of B, step by step, tile by tile.
template <int ROWS, int COLUMNS, int STAGES, int CLUSTER, class Memory>
__device__ __forceinline__ void fetch(const Memory& memory, const TensorMap& a, const TensorMap& b, int rank, int steps, int row_tiles,
                                      int column_tiles, int band) {
    register_deallocate<40>();
    Ring<STAGES> ring;
    const int tiles = row_tiles * column_tiles, clusters = gridDim.x / CLUSTER;
    for (int index = blockIdx.x / CLUSTER; index < tiles && threadIdx.x == CONSUMERS * GROUP; index += clusters) {
        const Tile tile(index, row_tiles, column_tiles, band);
        constexpr int SHARE = COLUMNS / CLUSTER;
        const int row = (tile.row * CLUSTER + rank) * ROWS, column = tile.column * COLUMNS + rank * SHARE;
        for (int step = 0; step < steps; ++step, ring.advance()) {
            Mbarrier *arrived = &memory.full()[ring.stage], *empty = &memory.empty()[ring.stage];
            char* const share = memory.b(ring.stage) + rank * SHARE * ROW_BYTES;
            if (CLUSTER > 1) mbarrier_wait_cluster(empty, ring.parity ^ 1);
            else mbarrier_wait(empty, ring.parity ^ 1);
            mbarrier_arrive_expect_tx(arrived, Memory::STAGE_BYTES);
            tma_load(memory.a(ring.stage), a, arrived, step * DEPTH, row);
            if (CLUSTER > 1) tma_load_multicast(share, b, arrived, (1 << CLUSTER) - 1, step * DEPTH, column);
            else tma_load(share, b, arrived, step * DEPTH, column);
        }
    }
    if (CLUSTER > 1) cluster_sync();  // what the other blocks send here must find this one's shared memory
}
