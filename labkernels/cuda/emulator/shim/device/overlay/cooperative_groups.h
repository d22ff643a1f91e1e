// Cooperative groups: clusters, thread blocks, tiles of up to 32 threads, and coalesced groups. In place of NVIDIA's header.
// Not here: grid-wide barriers, and tiles of more than one warp; each says so where it is used.
#pragma once
#include <lk_cuda.h>

namespace cooperative_groups {
namespace details {

constexpr bool is_power_of_two(unsigned n) { return n && !(n & (n - 1)); }
constexpr unsigned tile_mask(unsigned size, unsigned lane) { return (size >= 32 ? ~0u : (1u << size) - 1) << (lane & ~(size - 1)); }

LK_DEVICE unsigned block_size() { return blockDim.x * blockDim.y * blockDim.z; }
LK_DEVICE unsigned block_rank() { return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x; }

// Threads of one warp, as a mask of lanes. A thread's rank is its place among them.
class lanes {
public:
    LK_DEVICE void sync() const { __syncwarp(mask_); }
    LK_DEVICE unsigned size() const { return static_cast<unsigned>(__popc(mask_)); }
    LK_DEVICE unsigned num_threads() const { return size(); }
    LK_DEVICE unsigned thread_rank() const { return static_cast<unsigned>(__popc(mask_ & ((1u << lk::lane()) - 1))); }

    LK_DEVICE int any(int predicate) const { return lk::vote(mask_, predicate != 0, "any of a group").result != 0; }
    LK_DEVICE int all(int predicate) const { return lk::vote(mask_, predicate == 0, "all of a group").result == 0; }
    LK_DEVICE unsigned ballot(int predicate) const { return to_ranks(lk::vote(mask_, predicate != 0, "ballot of a group").result); }
    template <class T> LK_DEVICE unsigned match_any(T value) const {
        return to_ranks(lk::match(mask_, value, "match_any of a group").result);
    }
    template <class T> LK_DEVICE unsigned match_all(T value, int& equal) const {
        const auto match = lk::match(mask_, value, "match_all of a group");
        equal = match.result == match.members;
        return equal ? to_ranks(match.result) : 0;
    }
    LK_DEVICE unsigned lk_mask() const { return mask_; }

protected:
    explicit LK_DEVICE lanes(unsigned mask) : mask_(mask) {}
    LK_DEVICE unsigned lane_of(unsigned rank) const { return __fns(mask_, 0, static_cast<int>(rank) + 1); }
    unsigned to_ranks(unsigned lanes) const {
        unsigned result = 0, rank = 0;
        for (unsigned rest = mask_; rest; rest &= rest - 1, ++rank)
            if (lanes >> __builtin_ctz(rest) & 1) result |= 1u << rank;
        return result;
    }
    unsigned mask_;
};

}  // namespace details

class thread_block {
public:
    static LK_DEVICE void sync() { __syncthreads(); }
    static LK_DEVICE unsigned thread_rank() { return details::block_rank(); }
    static LK_DEVICE unsigned size() { return details::block_size(); }
    static LK_DEVICE unsigned num_threads() { return details::block_size(); }
    static LK_DEVICE dim3 group_index() { return blockIdx; }
    static LK_DEVICE dim3 thread_index() { return threadIdx; }
    static LK_DEVICE dim3 group_dim() { return blockDim; }
    static LK_DEVICE dim3 dim_threads() { return blockDim; }

private:
    LK_DEVICE thread_block() {}
    friend thread_block this_thread_block();
};
LK_DEVICE thread_block this_thread_block() { return thread_block(); }

// Threads of a warp that need not be neighbours.
class coalesced_group : public details::lanes {
public:
    explicit LK_DEVICE coalesced_group(unsigned lk_mask) : lanes(lk_mask) {}
    template <class T> LK_DEVICE T shfl(T value, int source_rank) const {
        return from_lane(value, lane_of(static_cast<unsigned>(source_rank)), "coalesced_group::shfl");
    }
    template <class T> LK_DEVICE T shfl_up(T value, unsigned delta) const {
        const unsigned rank = thread_rank();
        return from_lane(value, lane_of(rank >= delta ? rank - delta : rank), "coalesced_group::shfl_up");
    }
    template <class T> LK_DEVICE T shfl_down(T value, unsigned delta) const {
        const unsigned rank = thread_rank();
        return from_lane(value, lane_of(rank + delta < size() ? rank + delta : rank), "coalesced_group::shfl_down");
    }
    LK_DEVICE unsigned meta_group_rank() const { return 0; }
    LK_DEVICE unsigned meta_group_size() const { return 1; }

private:
    template <class T> LK_DEVICE T from_lane(T value, unsigned lane, const char* what) const {
        return lk::shuffle(lk::Shuffle::index, mask_, value, lane, 32, what);
    }
};
LK_DEVICE coalesced_group coalesced_threads() { return coalesced_group(__activemask()); }

// `Size` neighbouring threads of a warp.
template <unsigned Size, class Parent = void> class thread_block_tile : public details::lanes {
    static_assert(details::is_power_of_two(Size), "a tile's size must be a power of two");
    static_assert(Size <= 32, "labkernels emulator: tiles of more than 32 threads are not supported");

public:
    LK_DEVICE thread_block_tile(unsigned lk_group_rank, unsigned lk_group_size)
        : lanes(details::tile_mask(Size, lk::lane())), rank_(lk_group_rank), groups_(lk_group_size) {}
    template <class Other> LK_DEVICE thread_block_tile(const thread_block_tile<Size, Other>& other)
        : thread_block_tile(other.meta_group_rank(), other.meta_group_size()) {}

    static LK_DEVICE constexpr unsigned size() { return Size; }
    static LK_DEVICE constexpr unsigned num_threads() { return Size; }
    static LK_DEVICE unsigned thread_rank() { return lk::lane() & (Size - 1); }
    LK_DEVICE unsigned meta_group_rank() const { return rank_; }
    LK_DEVICE unsigned meta_group_size() const { return groups_; }

    template <class T> LK_DEVICE T shfl(T value, int source) const {
        return exchange(lk::Shuffle::index, value, static_cast<unsigned>(source), "thread_block_tile::shfl");
    }
    template <class T> LK_DEVICE T shfl_up(T value, unsigned delta) const {
        return exchange(lk::Shuffle::up, value, delta, "thread_block_tile::shfl_up");
    }
    template <class T> LK_DEVICE T shfl_down(T value, unsigned delta) const {
        return exchange(lk::Shuffle::down, value, delta, "thread_block_tile::shfl_down");
    }
    template <class T> LK_DEVICE T shfl_xor(T value, unsigned lanes) const {
        return exchange(lk::Shuffle::exclusive_or, value, lanes, "thread_block_tile::shfl_xor");
    }

private:
    template <class T> LK_DEVICE T exchange(lk::Shuffle kind, T value, unsigned argument, const char* what) const {
        return lk::shuffle(kind, mask_, value, argument, static_cast<int>(Size), what);
    }
    unsigned rank_, groups_;
};

template <unsigned Size> LK_DEVICE thread_block_tile<Size, thread_block> tiled_partition(const thread_block&) {
    return {details::block_rank() / Size, (details::block_size() + Size - 1) / Size};
}
template <unsigned Size, unsigned ParentSize, class Grandparent>
LK_DEVICE thread_block_tile<Size, thread_block_tile<ParentSize, Grandparent>> tiled_partition(const thread_block_tile<ParentSize, Grandparent>& parent) {
    static_assert(Size <= ParentSize, "a tile must not be larger than the group that it is a part of");
    return {parent.thread_rank() / Size, ParentSize / Size};
}

// Any of the groups above, for functions that take "a group".
class thread_group {
public:
    LK_DEVICE thread_group(const thread_block&) : mask_(0) {}
    LK_DEVICE thread_group(const details::lanes& lanes) : mask_(lanes.lk_mask()) {}
    LK_DEVICE void sync() const { mask_ ? __syncwarp(mask_) : (void)__syncthreads(); }
    LK_DEVICE unsigned size() const { return mask_ ? coalesced_group(mask_).size() : details::block_size(); }
    LK_DEVICE unsigned num_threads() const { return size(); }
    LK_DEVICE unsigned thread_rank() const { return mask_ ? coalesced_group(mask_).thread_rank() : details::block_rank(); }
    LK_DEVICE unsigned lk_mask() const { return mask_; }

private:
    unsigned mask_;         // 0: the whole block
};
LK_DEVICE thread_group tiled_partition(const thread_group& parent, unsigned size) {
    if (!details::is_power_of_two(size) || size > 32) lk::fail("tiled_partition: the size must be 1, 2, 4, 8, 16 or 32");
    if (!parent.lk_mask()) return coalesced_group(details::tile_mask(size, lk::lane()));
    unsigned mask = 0, rank = 0;
    for (unsigned rest = parent.lk_mask(); rest; rest &= rest - 1, ++rank)
        if (rank / size == parent.thread_rank() / size) mask |= rest & -rest;
    return coalesced_group(mask);
}

// The parts of a group whose threads gave the same label (a power-of-two tile or a coalesced group of one warp).
template <class Label> LK_DEVICE coalesced_group labeled_partition(const details::lanes& group, Label label) {
    return coalesced_group(lk::match(group.lk_mask(), label, "labeled_partition").result);
}
LK_DEVICE coalesced_group binary_partition(const details::lanes& group, bool predicate) {
    return labeled_partition(group, static_cast<int>(predicate));
}

class grid_group {
public:
    static LK_DEVICE bool is_valid() { return false; }
    static LK_DEVICE void sync() { lk::fail("grid_group::sync() needs a cooperative launch, which the emulator does not support"); }
    static LK_DEVICE dim3 block_index() { return blockIdx; }
    static LK_DEVICE dim3 dim_blocks() { return gridDim; }
    static LK_DEVICE unsigned long long num_blocks() { return static_cast<unsigned long long>(gridDim.x) * gridDim.y * gridDim.z; }
    static LK_DEVICE unsigned long long block_rank() {
        return (static_cast<unsigned long long>(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    }
    static LK_DEVICE unsigned long long size() { return num_blocks() * details::block_size(); }
    static LK_DEVICE unsigned long long num_threads() { return size(); }
    static LK_DEVICE unsigned long long thread_rank() { return block_rank() * details::block_size() + details::block_rank(); }
};
LK_DEVICE grid_group this_grid() { return grid_group(); }

class cluster_group {
public:
    using arrival_token = struct {};
    static LK_DEVICE void sync() { lk::cluster_sync(); }
    static LK_DEVICE arrival_token barrier_arrive() { return lk::cluster_arrive(), arrival_token(); }
    static LK_DEVICE void barrier_wait() { lk::cluster_wait(); }
    static LK_DEVICE void barrier_wait(arrival_token&&) { lk::cluster_wait(); }
    template <class T> static LK_DEVICE T* map_shared_rank(T* address, int rank) {
        return static_cast<T*>(lk::map_shared_rank(const_cast<const void*>(static_cast<const volatile void*>(address)), rank));
    }
    static LK_DEVICE dim3 dim_blocks() { return lk::cluster_shape(); }
    static LK_DEVICE dim3 block_index() {
        const uint3 shape = lk::cluster_shape();
        return dim3(blockIdx.x % shape.x, blockIdx.y % shape.y, blockIdx.z % shape.z);
    }
    static LK_DEVICE unsigned block_rank() { return lk::cluster_rank(); }
    static LK_DEVICE unsigned num_blocks() { return lk::cluster_size(); }
    static LK_DEVICE unsigned thread_rank() { return block_rank() * details::block_size() + details::block_rank(); }
    static LK_DEVICE unsigned num_threads() { return num_blocks() * details::block_size(); }
    static LK_DEVICE unsigned size() { return num_threads(); }
};
LK_DEVICE cluster_group this_cluster() { return cluster_group(); }

template <class Group> LK_DEVICE void sync(const Group& group) { group.sync(); }
template <class Group> LK_DEVICE auto thread_rank(const Group& group) { return group.thread_rank(); }
template <class Group> LK_DEVICE auto group_size(const Group& group) { return group.size(); }

}  // namespace cooperative_groups
