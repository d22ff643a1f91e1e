// Clusters: blocks that run together, wait for each other and reach into each other's shared memory.
//
// All blocks of a cluster run on one OS thread, as the threads of a block do. Each has its dynamic shared memory. Their static
// shared memory is one and the same storage of that OS thread, so it holds that of the block that runs; the others' is parked.
#include <cstdio>
#include <cstring>
#include <string>

#include "lk_async.h"
#include "machine.h"
#include "profiler.h"
#include "sanitizer.h"

namespace lk {
namespace {

const char* const kSync = "cluster_sync";
const char* const kWait = "cluster_wait";

// The sanitizer reports it and gives the cluster up; without one the launch ends.
[[noreturn]] void misuse(FindingKind kind, const std::string& text, void* pc) {
    Worker& worker = this_worker();
    this_thread().last_pc = pc;
    if (worker.sanitizer) worker.sanitizer->misuse(worker, this_thread(), kind, text, pc);
    fail(("a thread " + text).c_str());
}

void complete(Worker& worker) {
    Cluster& cluster = *worker.cluster;
    if (worker.sanitizer) worker.sanitizer->cluster_barrier(worker);
    ++cluster.phase;
    for (Worker* block : cluster.blocks) {
        cluster.missing += block->alive;
        for (Thread& thread : block->threads)
            if (thread.waiting_for == kSync || thread.waiting_for == kWait) make_ready(*block, thread);
    }
}

void arrive(Worker& worker, Thread& thread, bool to_stay, void* pc) {
    thread.last_pc = thread.waiting_pc = pc;
    if (thread.at_cluster_barrier)
        misuse(kBarrierDivergence, "arrives at the cluster's barrier a second time without cluster_wait() in between", pc);
    thread.at_cluster_barrier = true;
    thread.cluster_phase = worker.cluster->phase;
    thread.stays_at_cluster_barrier = to_stay;
    if (worker.sanitizer) worker.sanitizer->channel_arrive(worker, thread, kClusterChannel, false);
    if (--worker.cluster->missing == 0) complete(worker);
}

void wait(Worker& worker, Thread& thread, const char* what, void* pc) {
    thread.last_pc = pc;
    if (!thread.at_cluster_barrier) misuse(kBarrierDivergence, "waits at the cluster's barrier without having arrived there: cluster_arrive() first", pc);
    if (worker.profiler) worker.profiler->arrive(worker, thread, reinterpret_cast<std::uint64_t>(pc));
    if (thread.cluster_phase == worker.cluster->phase) wait_in(worker, thread, what, pc);
    thread.at_cluster_barrier = false;
    if (worker.sanitizer) worker.sanitizer->channel_acquire(worker, thread, kClusterChannel, true);
}

}  // namespace

void begin_cluster(Cluster& cluster) {
    cluster.aborted = false;
    cluster.phase = 0;
    cluster.missing = 0;
    for (Worker* block : cluster.blocks) cluster.missing += block->alive;
}

void enter_block(Worker& worker) {
    Worker& left = this_worker();
    if (worker.parked_shared) {
        std::memcpy(left.parked_shared, left.static_shared, left.static_shared_bytes);
        std::memcpy(worker.static_shared, worker.parked_shared, worker.static_shared_bytes);
    }
    lk_block = &worker;
}

void leave_cluster_barrier(Worker& worker, Thread& thread) {
    if (!thread.came_to(worker.cluster->phase) && --worker.cluster->missing == 0) complete(worker);
}

Worker* shared_owner(const void* address, unsigned* offset) {
    Worker& worker = this_worker();
    *offset = shared_offset(address);
    if (*offset != ~0u) return &worker;
    const auto* byte = static_cast<const char*>(address);
    for (Worker* block : worker.cluster->blocks) {
        const std::ptrdiff_t dynamic = byte - static_cast<char*>(block->dynamic_shared), parked = byte - block->parked_shared;
        if (dynamic >= 0 && dynamic < kSharedWindow) return *offset = static_cast<unsigned>(dynamic), block;
        if (!block->parked_shared || parked < 0 || parked >= static_cast<std::ptrdiff_t>(block->static_shared_bytes)) continue;
        *offset = shared_offset(worker.static_shared + parked);
        return block;
    }
    return nullptr;
}

char* in_block(Worker& block, const void* address) {
    Worker& worker = this_worker();
    auto* byte = static_cast<char*>(const_cast<void*>(address));
    if (&block == &worker) return byte;
    const std::ptrdiff_t dynamic = byte - static_cast<char*>(worker.dynamic_shared);
    if (dynamic >= 0 && dynamic < kSharedWindow) return static_cast<char*>(block.dynamic_shared) + dynamic;
    return block.parked_shared + (byte - worker.static_shared);
}

unsigned cluster_rank() { return this_worker().rank; }
unsigned cluster_size() { return static_cast<unsigned>(this_worker().cluster->blocks.size()); }
uint3 cluster_shape() { const dim3& shape = this_worker().launch->cluster; return uint3{shape.x, shape.y, shape.z}; }

void cluster_sync() {
    Worker& worker = this_worker();
    Thread& thread = this_thread();
    void* pc = __builtin_return_address(0);
    arrive(worker, thread, true, pc);
    wait(worker, thread, kSync, pc);
}

void cluster_arrive() { arrive(this_worker(), this_thread(), false, __builtin_return_address(0)); }
void cluster_wait() { wait(this_worker(), this_thread(), kWait, __builtin_return_address(0)); }

void* map_shared_rank(const void* address, unsigned rank) {
    Worker& worker = this_worker();
    void* pc = __builtin_return_address(0);
    const auto& blocks = worker.cluster->blocks;
    if (rank >= blocks.size())
        misuse(kOutOfBounds, "asks for the shared memory of rank " + std::to_string(static_cast<int>(rank)) + " in a cluster of " +
                                 std::to_string(blocks.size()) + (blocks.size() == 1 ? " block" : " blocks"), pc);
    if (shared_offset(address) == ~0u)
        misuse(kOutOfBounds, "asks for the counterpart of an address that is not in its own block's shared memory", pc);
    return in_block(*blocks[rank], address);
}

}  // namespace lk
