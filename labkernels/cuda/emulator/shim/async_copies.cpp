// Copies on their way to shared memory (cp.async), a queue for each CUDA thread. They land as late as is allowed: when it waits.
#include <cstring>
#include <deque>

#include "device/async_copy.h"
#include "machine.h"
#include "sanitizer.h"

namespace lk {
namespace {

struct AsyncCopy {
    void* shared;
    AsyncBytes data;
    unsigned bytes;
    std::uint64_t group;            // number of the thread's group that it belongs to
    void* pc;                       // where it was started
};

struct Queue {
    std::deque<AsyncCopy> copies;
    std::uint64_t groups = 0;       // closed so far
};

// The running thread's queue, empty when a block begins. The worker must be busy.
Queue& queue_of(Thread& thread) {
    static thread_local std::vector<Queue> queues;
    if (queues.size() <= thread.actor) queues.resize(thread.actor + 1);
    if (!thread.copies_async) queues[thread.actor] = Queue{};
    thread.copies_async = true;
    return queues[thread.actor];
}

// Let those of the groups before `end` land, in the order of their start.
void land(Worker& worker, Thread& thread, Queue& queue, std::uint64_t end) {
    while (!queue.copies.empty() && queue.copies.front().group < end) {
        const AsyncCopy copy = queue.copies.front();
        queue.copies.pop_front();
        std::memcpy(copy.shared, copy.data.byte, copy.bytes);
        if (!worker.sanitizer) continue;
        worker.sanitizer->access(worker, thread, reinterpret_cast<std::uintptr_t>(copy.shared), copy.bytes, kWrite, false, false, copy.pc);
        worker.busy = true;
    }
}

}  // namespace

// From the start of a copy to its landing, what the destination holds must not be read.
void Sanitizer::undefine(std::uintptr_t address, unsigned bytes) {
    address = resting(this_worker(), address);
    const int region = region_of(address, address + bytes);
    if (region < 0) return;
    const std::uintptr_t first = regions_[region].low & ~std::uintptr_t{3};
    for (std::uintptr_t byte = address; byte < address + bytes; ++byte)
        cells_of(region)[(byte - first) / 4].written_mask &= static_cast<std::uint8_t>(~(1u << byte % 4));
}

void queue_async_copy(void* shared, const AsyncBytes& data, unsigned bytes) {
    Worker& worker = this_worker();
    worker.busy = true;
    Queue& queue = queue_of(*worker.current);
    queue.copies.push_back({shared, data, bytes, queue.groups, __builtin_return_address(0)});
    if (worker.sanitizer) worker.sanitizer->undefine(reinterpret_cast<std::uintptr_t>(shared), bytes);
    worker.busy = false;
}

void commit_async_copies() {
    Worker& worker = this_worker();
    worker.busy = true;
    ++queue_of(*worker.current).groups;
    worker.busy = false;
}

void wait_async_copies(unsigned groups_left) {
    Worker& worker = this_worker();
    worker.busy = true;
    Queue& queue = queue_of(*worker.current);
    land(worker, *worker.current, queue, queue.groups > groups_left ? queue.groups - groups_left : 0);
    worker.busy = false;
}

void wait_all_async_copies() {
    Worker& worker = this_worker();
    worker.busy = true;
    land(worker, *worker.current, queue_of(*worker.current), ~std::uint64_t{0});
    worker.busy = false;
}

}  // namespace lk
