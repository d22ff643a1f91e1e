// The scheduler: runs the CUDA threads of a block as fibers, and lets them wait for each other.
#include "machine.h"

#include <sched.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "profiler.h"
#include "sanitizer.h"

extern "C" {
__thread lk::Fiber* lk_fiber __attribute__((tls_model("initial-exec"))) = nullptr;
__thread lk::Block* lk_block __attribute__((tls_model("initial-exec"))) = nullptr;
}

namespace lk {
namespace {

constexpr unsigned kPollsBeforeYield = 64;

// All lanes of the warp wait, some of them at an __activemask: those at the same call are active together.
void answer_active_mask(Worker& worker, unsigned w) {
    Warp& warp = worker.warps[w];
    Thread* lanes = &worker.threads[w * 32];
    const void* pc = lanes[__builtin_ctz(warp.gathering)].waiting_pc;
    std::uint32_t together = 0;
    for (std::uint32_t rest = warp.gathering; rest; rest &= rest - 1) {
        const unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
        if (lanes[lane].waiting_pc == pc) together |= 1u << lane;
    }
    for (std::uint32_t rest = together; rest; rest &= rest - 1) {
        Thread& thread = lanes[__builtin_ctz(rest)];
        thread.waiting_for = nullptr;
        thread.mask = together;
    }
    warp.gathering &= ~together;
    warp.ready |= together;
}

// A thread that can run, of the warps `first` to `end`, taken out of its warp's ready mask.
Thread* ready_among(Worker& worker, unsigned first, unsigned end) {
    for (unsigned w = first; w < end; ++w) {
        Warp& warp = worker.warps[w];
        if (!warp.ready && warp.gathering) answer_active_mask(worker, w);
        if (!warp.ready) continue;
        const unsigned lane = static_cast<unsigned>(__builtin_ctz(warp.ready));
        warp.ready &= warp.ready - 1;
        worker.current_warp = w;
        return &worker.threads[w * 32 + lane];
    }
    return nullptr;
}

// The next thread that can run, and its block: the same warp first, so that a warp's registers and shared-memory lines stay
// warm, then the other warps, then the other blocks of the cluster.
Thread* next_ready(Worker*& worker) {
    const std::vector<Worker*>& blocks = worker->cluster->blocks;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        Worker* block = blocks[(worker->rank + i) % blocks.size()];
        const unsigned count = static_cast<unsigned>(block->warps.size()), current = block->current_warp;
        Thread* next = ready_among(*block, current, count);
        if (!next) next = ready_among(*block, 0, current);
        if (!next) continue;
        worker = block;
        return next;
    }
    return nullptr;
}

// The next thread when all get their turns: of the warps behind this one, of the other blocks, of the warps before.
Thread* next_in_turn(Worker*& worker) {
    Worker& mine = *worker;
    const unsigned behind = mine.current_warp + 1;
    if (Thread* next = ready_among(mine, behind, static_cast<unsigned>(mine.warps.size()))) return next;
    const std::vector<Worker*>& blocks = mine.cluster->blocks;
    for (std::size_t i = 1; i < blocks.size(); ++i) {
        worker = blocks[(mine.rank + i) % blocks.size()];
        if (Thread* next = ready_among(*worker, 0, static_cast<unsigned>(worker->warps.size()))) return next;
    }
    worker = &mine;
    return ready_among(mine, 0, behind);
}

void become(Worker& worker, Thread* thread) {
    if (lk_block != &worker) enter_block(worker);
    worker.current = thread;
    lk_fiber = thread;
    worker.switches.store(worker.switches.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

void thread_entry();

void ensure_frame(Worker& worker, Thread* thread) {
    if (thread->stack) return;
    thread->stack = take_stack(worker);
    thread->stack_pointer = first_frame(thread->stack, thread->index, thread_entry);
}

// Leave the running thread (which has said what it waits for) for the next one, or for the main context if none can run.
void switch_away(Worker& worker, Thread& thread) {
    if (worker.profiler) worker.profiler->lane_waits(worker, thread);
    Worker* block = &worker;
    Thread* next = next_ready(block);
    if (next == &thread) return become(worker, next);
    void* target = worker.cluster->main_stack_pointer;
    if (next) {
        ensure_frame(*block, next);
        target = next->stack_pointer;
        become(*block, next);
    }
    lk_switch(&thread.stack_pointer, target);
}

void complete_barrier(Worker& worker, Thread* running) {
    worker.vote_result_count = worker.vote_count;
    worker.vote_population = worker.at_barrier;
    worker.vote_count = 0;
    worker.at_barrier = 0;
    if (worker.sanitizer) worker.sanitizer->block_barrier(worker, running);
    for (Thread& thread : worker.threads)
        if (&thread != running && thread.at_barrier) thread.at_barrier = false, make_ready(worker, thread);
}

// Whether every living lane of `mask` waits in the same warp-wide operation.
bool collective_complete(Worker& worker, Warp& warp, const Thread& thread) {
    const unsigned need = thread.mask & warp.alive;
    if ((warp.collecting & need) != need) return false;
    const Thread* lanes = &worker.threads[thread.warp * 32];
    for (unsigned rest = need; rest; rest &= rest - 1) {
        const Thread& other = lanes[__builtin_ctz(rest)];
        if (other.mask != thread.mask || other.run != thread.run) return false;
    }
    return true;
}

void complete_collective(Worker& worker, Warp& warp, Thread& thread, Thread* running) {
    const unsigned members = thread.mask & warp.alive;
    Thread* lanes = &worker.threads[thread.warp * 32];
    if (thread.run) {
        void* data[32] = {};
        for (unsigned rest = members; rest; rest &= rest - 1) {
            const unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
            data[lane] = lanes[lane].data;
        }
        worker.busy = true;
        thread.run(members, data);
        worker.busy = false;
    } else if (worker.sanitizer) {
        worker.sanitizer->warp_barrier(worker, thread.warp, members);
    }
    warp.collecting &= ~members;
    for (unsigned rest = members; rest; rest &= rest - 1) {
        Thread& other = lanes[__builtin_ctz(rest)];
        if (&other != running) make_ready(worker, other);
    }
}

// Join the warp-wide operation `run` (null: a warp barrier) and wait until it is done.
void join_warp(unsigned mask, void* data, Run run, const char* what, void* pc) {
    Worker& worker = this_worker();
    Thread& thread = this_thread();
    Warp& warp = worker.warps[thread.warp];
    thread.last_pc = pc;
    if (worker.sanitizer) worker.sanitizer->warp_operation(worker, thread, mask, what, pc);
    if (!(mask >> thread.lane & 1)) fail((std::string(what) + ": the calling thread is not in its own mask").c_str());
    thread.mask = mask;
    thread.data = data;
    thread.run = run;
    warp.collecting |= 1u << thread.lane;
    if (collective_complete(worker, warp, thread)) return complete_collective(worker, warp, thread, &thread);
    wait_in(worker, thread, what, pc);
}

void finish(Worker& worker, Thread& thread) {
    Warp& warp = worker.warps[thread.warp];
    thread.finished = true;
    warp.alive &= ~(1u << thread.lane);
    --worker.alive;
    if (worker.sanitizer) worker.sanitizer->thread_exit(worker, thread);
    if (worker.at_barrier && worker.at_barrier == worker.alive) complete_barrier(worker, nullptr);
    for (unsigned rest = warp.collecting; rest; rest &= rest - 1) {
        Thread& other = worker.threads[thread.warp * 32 + __builtin_ctz(rest)];
        if (collective_complete(worker, warp, other)) {
            complete_collective(worker, warp, other, nullptr);
            break;
        }
    }
    leave_cluster_barrier(worker, thread);
}

// Runs CUDA threads one after another on this stack, until one that already has a stack is next.
void thread_entry() {
    for (;;) {
        Worker& worker = this_worker();
        worker.launch->call(worker.launch->arguments);
        Thread& thread = *worker.current;
        finish(worker, thread);
        if (worker.profiler) worker.profiler->lane_waits(worker, thread);
        Stack* stack = thread.stack;
        thread.stack = nullptr;
        Worker* block = &worker;
        Thread* next = next_ready(block);
        void* ignored;
        if (!next) {
            worker.stacks.push_back(stack);
            lk_switch(&ignored, worker.cluster->main_stack_pointer);
        } else if (next->stack) {
            worker.stacks.push_back(stack);
            become(*block, next);
            lk_switch(&ignored, next->stack_pointer);
        } else {
            next->stack = stack;
            become(*block, next);
        }
    }
}

std::string describe_stall(Worker& worker) {
    std::string text = worker.cluster->blocks.size() > 1 ? "deadlock in the cluster; in this block" : "deadlock:";
    for (std::size_t i = 0; i < worker.threads.size();) {
        const Thread& thread = worker.threads[i];
        std::size_t j = i + 1;
        while (j < worker.threads.size() && worker.threads[j].waiting_for == thread.waiting_for) ++j;
        char part[160];
        const char* what = thread.waiting_for ? thread.waiting_for : "nothing (they have left the kernel)";
        if (j == i + 1) std::snprintf(part, sizeof part, " thread %zu waits for %s;", i, what);
        else std::snprintf(part, sizeof part, " threads %zu to %zu wait for %s;", i, j - 1, what);
        if (text.size() < 600) text += part;
        i = j;
    }
    text.back() = '.';
    return text;
}

void begin_block(Worker& worker, uint3 index) {
    const dim3& shape = worker.launch->block;
    worker.block_idx = index;
    const unsigned count = shape.x * shape.y * shape.z;
    worker.threads.resize(count);
    worker.warps.assign((count + 31) / 32, Warp{});
    for (unsigned i = 0; i < count; ++i) {
        Thread& thread = worker.threads[i];
        if (thread.stack) worker.stacks.push_back(thread.stack);      // of a block that was abandoned
        thread = Thread{};
        thread.thread_idx = uint3{i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
        thread.index = i;
        thread.actor = worker.rank * worker.launch->actors_a_block() + i;
        thread.lane = i % 32;
        thread.warp = i / 32;
        worker.warps[i / 32].ready |= 1u << (i % 32);
        worker.warps[i / 32].alive |= 1u << (i % 32);
    }
    worker.alive = count;
    worker.at_barrier = 0;
    worker.vote_count = 0;
    for (NamedBarrier& barrier : worker.named) barrier.expected = barrier.arrived = 0;
    worker.warpgroup_arrived.assign((worker.warps.size() + 3) / 4, 0);
    worker.current_warp = 0;
}

}  // namespace

Worker& this_worker() { return *static_cast<Worker*>(lk_block); }

void wait_in(Worker& worker, Thread& thread, const char* what, void* pc) {
    thread.waiting_for = what;
    thread.waiting_pc = pc;
    switch_away(worker, thread);
}

void run_cluster(Cluster& cluster, std::uint64_t number) {
    Worker& worker = *cluster.blocks[0];
    for (Worker* block : cluster.blocks) begin_block(*block, worker.launch->block_at(number, block->rank));
    begin_cluster(cluster);
    if (worker.sanitizer) worker.sanitizer->begin_cluster(number);
    if (worker.profiler) worker.profiler->begin_cluster(worker, number);
    Worker* block = &worker;
    Thread* first = next_ready(block);
    ensure_frame(worker, first);
    become(worker, first);
    lk_switch(&cluster.main_stack_pointer, first->stack_pointer);
    lk_fiber = nullptr;
    lk_block = &worker;
    for (Worker* each : cluster.blocks) each->current = nullptr;
    if (cluster.aborted) return;
    for (Worker* each : cluster.blocks) {
        if (!each->alive) continue;                     // else nobody can run, and some have not finished
        if (worker.sanitizer) return worker.sanitizer->stalled(*each);
        return worker.launch->fail(*each, kDeadlock, describe_stall(*each), nullptr);
    }
    if (worker.sanitizer) worker.sanitizer->end_cluster(cluster);
}

void leave_block(Worker& worker) {
    worker.cluster->aborted = true;
    worker.busy = false;
    void* ignored;
    lk_switch(&ignored, worker.cluster->main_stack_pointer);
    __builtin_unreachable();
}

void collective(unsigned mask, void* data, Run run, const char* what) {
    join_warp(mask, data, run, what, __builtin_return_address(0));
}

void warp_barrier(unsigned mask) { join_warp(mask, nullptr, nullptr, "__syncwarp", __builtin_return_address(0)); }

int block_barrier(BarrierVote vote, int predicate) {
    Worker& worker = this_worker();
    Thread& thread = this_thread();
    void* pc = __builtin_return_address(0);
    thread.last_pc = thread.waiting_pc = pc;
    if (worker.profiler) worker.profiler->arrive(worker, thread, reinterpret_cast<std::uint64_t>(pc));
    worker.vote_count += predicate;
    if (++worker.at_barrier == worker.alive) complete_barrier(worker, &thread);
    else thread.at_barrier = true, wait_in(worker, thread, "__syncthreads", pc);
    switch (vote) {
        case kVoteCount: return worker.vote_result_count;
        case kVoteAnd: return worker.vote_result_count == static_cast<int>(worker.vote_population);
        case kVoteOr: return worker.vote_result_count != 0;
        default: return 0;
    }
}

void yield() {
    Worker& worker = this_worker();
    Thread& thread = this_thread();
    Warp& warp = worker.warps[thread.warp];
    // Lanes after this one, then the other warps and blocks, then the lanes before it: everybody gets a turn.
    const std::uint32_t later = thread.lane == 31 ? 0 : warp.ready & ~((2u << thread.lane) - 1);
    Worker* block = &worker;
    Thread* next = nullptr;
    if (later) {
        const unsigned lane = static_cast<unsigned>(__builtin_ctz(later));
        warp.ready &= ~(1u << lane);
        next = &worker.threads[thread.warp * 32 + lane];
    } else {
        next = next_in_turn(block);
    }
    if (!next) {                                        // the others of this block wait for it, or it for another block
        worker.current_warp = thread.warp;
        sched_yield();
        return;
    }
    warp.ready |= 1u << thread.lane;
    ensure_frame(*block, next);
    become(*block, next);
    lk_switch(&thread.stack_pointer, next->stack_pointer);
}

void give_way(Worker& worker) {
    if (++worker.polls % kPollsBeforeYield == 0) yield();
}

void thread_fence() {
    Worker& worker = this_worker();
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (worker.sanitizer) worker.sanitizer->fence(worker, this_thread());
}

void on_atomic(void* address, unsigned size, void* pc) {
    Worker& worker = this_worker();
    Thread& thread = this_thread();
    thread.last_pc = pc;
    give_way(worker);           // first: between what the sanitizer notes and the operation itself nobody else may run
    if (worker.sanitizer) worker.sanitizer->atomic(worker, thread, address, size, pc);
    if (worker.profiler) worker.profiler->access(worker, thread, reinterpret_cast<std::uintptr_t>(address), size, true, true,
                                                 reinterpret_cast<std::uint64_t>(pc));
}

void undefined_lane(const char* what, unsigned source) {
    Worker& worker = this_worker();
    const bool named = this_thread().mask >> source & 1;     // then it is absent, which is a finding of its own
    const bool shift = std::strstr(what, "_down") || std::strstr(what, "_up");      // edge lanes, whose results nobody uses
    if (worker.sanitizer && !named && !shift) worker.sanitizer->undefined_lane(worker, this_thread(), what, source);
}

uint3 thread_index() { return this_thread().thread_idx; }
uint3 block_index() { return this_worker().block_idx; }
uint3 block_shape() { const dim3& shape = this_worker().block_dim; return uint3{shape.x, shape.y, shape.z}; }
uint3 grid_shape() { const dim3& shape = this_worker().grid_dim; return uint3{shape.x, shape.y, shape.z}; }
void* dynamic_shared() { return this_worker().dynamic_shared; }
unsigned lane() { return this_thread().lane; }

unsigned active_mask() {
    Worker& worker = this_worker();
    Thread& thread = this_thread();
    worker.warps[thread.warp].gathering |= 1u << thread.lane;
    wait_in(worker, thread, "__activemask", __builtin_return_address(0));
    return thread.mask;
}

unsigned long long clock() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<unsigned long long>(now.tv_sec) * 1000000000ull + static_cast<unsigned long long>(now.tv_nsec);
}

void fail(const char* text) {
    Worker& worker = this_worker();
    worker.busy = true;
    worker.launch->fail(worker, kFailed, text, this_thread().last_pc);
    leave_block(worker);
}

int device_printf(const char* format, ...) {
    Worker& worker = this_worker();
    worker.busy = true;
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = std::vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    {
        std::lock_guard<std::mutex> lock(worker.launch->mutex);
        if (worker.launch->output.size() < (1u << 20)) worker.launch->output += line;     // as a GPU's buffer, 1 MiB
    }
    worker.busy = false;
    return length;
}

}  // namespace lk
