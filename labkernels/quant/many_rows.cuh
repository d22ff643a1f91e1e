// How the sums of v5's kernel for many rows of x leave it: added up with those of the other blocks that have a part of the tile, and
// stored.
#pragma once
#include "hopper_weights.cuh"
#include "stream_k.cuh"

constexpr int SLAB_TOKENS = 32, SLAB_BYTES = SLAB_TOKENS * ROW_BYTES;

// Columns of the sums are rows of y: stmatrix writes them transposed, 32 rows of y at a time, and the copy engine takes them away.
// `slabs` are the warpgroup's own, OWN of them; `slab` counts those written so far. The sums are those of 64 rows of W, from `row`
// on, and `factors` multiplies them, where SCALED.
template <class T, bool SCALED, int OWN, int COUNT>
__device__ __forceinline__ void store_part(const TensorMap& y, char* slabs, int& slab, const float (&sums)[COUNT], int row, int token,
                                           const float (&factors)[2]) {
    const int thread = threadIdx.x % GROUP, lane = threadIdx.x % 32, warpgroup = threadIdx.x / GROUP;
#pragma unroll
    for (int first = 0; first < 2 * COUNT; first += SLAB_TOKENS, ++slab) {
        char* const staged = slabs + slab % OWN * SLAB_BYTES;
        if (thread == 0) tma_wait_read<OWN - 1>();
        named_barrier_sync(1 + warpgroup, GROUP);
#pragma unroll
        for (int block = 0; block < SLAB_TOKENS / 8; block += 2) {
            unsigned packed[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = (first / 8 + block) * 4 + 2 * i;
                const float factor = SCALED ? factors[i % 2] : 1.0f;
                packed[i] = pack_pair<T>(sums[at] * factor, sums[at + 1] * factor);
            }
            const int at = 8 * (block + lane / 16) + lane % 8, piece = thread / 32 * 2 + lane / 8 % 2;
            stmatrix_trans(staged + at * ROW_BYTES + ((piece ^ at % 8) << 4), packed);
        }
        fence_proxy_async_shared();
        named_barrier_sync(1 + warpgroup, GROUP);
        if (thread == 0) {
            tma_store(y, staged, row, token + first);
            tma_commit();
        }
    }
}

// Tiles whose k the SPLITS blocks of a cluster share: each adds up a share of the rows of y, and leaves the others its sums of theirs, in
// `own`.
template <int SPLITS, int THREADS, int COUNT>
__device__ __forceinline__ void leave_others(const float (&sums)[COUNT], float4* own, int rank) {
    constexpr int SHARE = COUNT / 4 / SPLITS;  // vectors, which are 8 rows of y each
#pragma unroll
    for (int i = 0; i < COUNT / 4; ++i)
        if (i / SHARE != rank) own[i * THREADS] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
}

// Of `sums`, vectors `first` and on of share `rank`, and what the other blocks of the cluster have left of them in `memory`, one TILE
// after the other. In order of k: the same bits each time. Registers have no address: SHARE is rank, known to the compiler.
template <int SPLITS, int TILE, int THREADS, int SHARE = 0, int PIECE, int COUNT>
__device__ __forceinline__ void add_up(float (&total)[PIECE], const float (&sums)[COUNT], const float4* memory, int rank, int first) {
    if (SHARE != rank) {
        if constexpr (SHARE + 1 < SPLITS) add_up<SPLITS, TILE, THREADS, SHARE + 1>(total, sums, memory, rank, first);
        return;
    }
    __syncwarp();  // keeps the compiler from loading more at once than there are registers for
#pragma unroll
    for (int i = 0; i < PIECE / 4; ++i) {
        const int at = SHARE * (COUNT / 4 / SPLITS) + first + i;
#pragma unroll
        for (int from = 0; from < SPLITS; ++from) {
            float4 part = make_float4(sums[4 * at], sums[4 * at + 1], sums[4 * at + 2], sums[4 * at + 3]);
            if (from != SHARE) part = __ldcg(memory + from * TILE + at * THREADS);
            if (from == 0) {
                total[4 * i] = part.x, total[4 * i + 1] = part.y, total[4 * i + 2] = part.z, total[4 * i + 3] = part.w;
            } else {
                total[4 * i] += part.x, total[4 * i + 1] += part.y, total[4 * i + 2] += part.z, total[4 * i + 3] += part.w;
            }
        }
    }
}

// The same for tiles cut where parts end (stream_k.cuh): the `sums` of `block` become those of the whole tile if it comes last; else its
// own are in `memory` when it returns, and the result is false. A block's part lies at its slot, as THREADS vectors for each 4 of a
// thread's sums. Parts are added in the order of k, of which the first two may change places: the same bits each time, whoever adds.
template <int THREADS, int COUNT>
__device__ __forceinline__ bool add_up_parts(float (&sums)[COUNT], const Schedule& schedule, int block, const Item& item, float4* memory,
                                             int* counters, int& arrived_before, int barrier) {
    constexpr int VECTORS = COUNT / 4, AT_ONCE = VECTORS % 16 ? 8 : 16;
    const Members members = schedule.members(item.tile);
    const auto place = [&](int block) { return memory + schedule.slot(block, item.tile) * (VECTORS * THREADS) + threadIdx.x; };
    const auto vector = [&](int i) { return sums + 4 * i; };
    // The first part of a tile is the last that its block has: often all others have come, and it need not be written.
    if (item.first > 0 || !all_came(members, counters, false, arrived_before, barrier, THREADS)) {
        float4* const own = place(block);
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) own[i * THREADS] = make_float4(vector(i)[0], vector(i)[1], vector(i)[2], vector(i)[3]);
        if (!all_came(members, counters, true, arrived_before, barrier, THREADS)) return false;
    }
    const bool kept = block <= members.first + 1;
    if (!kept) {
        const float4* const first = place(members.first);
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            const float4 part = __ldcg(first + i * THREADS);
            vector(i)[0] = part.x, vector(i)[1] = part.y, vector(i)[2] = part.z, vector(i)[3] = part.w;
        }
    }
    for (int other = kept ? members.first : members.first + 1; other <= members.last; ++other) {
        if (kept && other == block) continue;
        const float4* const theirs = place(other);
#pragma unroll
        for (int first = 0; first < VECTORS; first += AT_ONCE) {
            __syncwarp();  // keeps the compiler from loading more at once than there are registers for
#pragma unroll
            for (int i = first; i < first + AT_ONCE; ++i) {
                const float4 part = __ldcg(theirs + i * THREADS);
                vector(i)[0] += part.x, vector(i)[1] += part.y, vector(i)[2] += part.z, vector(i)[3] += part.w;
            }
        }
    }
    return true;
}

// A consumer warp gives a stage back that all its lanes have read; none if it is negative.
__device__ __forceinline__ void release_stage(Mbarrier* empty, int stage) {
    __syncwarp();
    if (threadIdx.x % 32 == 0 && stage >= 0) mbarrier_arrive(&empty[stage]);
}
