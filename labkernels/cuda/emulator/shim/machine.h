// The emulated machine from the inside: worker threads, blocks, CUDA threads, and what they wait for.
#pragma once
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "lk_runtime.h"

namespace lk {

constexpr unsigned kSharedWindow = 256 * 1024;      // shared memory as PTX addresses it: dynamic from below, static at the end
constexpr unsigned kSwizzlePeriod = 1024;           // a place is the same modulo this in all blocks, as an offset and as a host address

using Run = void (*)(unsigned mask, void** lanes);

struct Stack {
    char* guard;                // one page that must never be touched: the end of an overflowing stack
    char* bottom;
    char* top;
};

struct Thread : Fiber {         // one CUDA thread
    void* stack_pointer = nullptr;
    Stack* stack = nullptr;     // null until it first runs and after it has returned
    unsigned index = 0, lane = 0, warp = 0;
    unsigned actor = 0;         // index among the threads of the cluster: rank * actors_a_block + index
    const char* waiting_for = nullptr;      // "__syncthreads", "__shfl_sync", ...; null while it can run
    void* waiting_pc = nullptr;
    void* last_pc = nullptr;                // the last place in the user's code that the runtime knows of
    unsigned mask = 0;                      // of the warp-wide operation that it waits in
    void* data = nullptr;
    Run run = nullptr;
    bool finished = false, at_barrier = false;
    bool copies_async = false;              // has a queue of copies on their way (async_copies.cpp)
    bool at_cluster_barrier = false;        // has arrived and not yet waited (cluster.cpp)
    bool stays_at_cluster_barrier = false;  // has arrived by cluster_sync
    std::uint32_t cluster_phase = 0;        // in which it has arrived

    bool came_to(std::uint32_t phase) const { return at_cluster_barrier && cluster_phase == phase; }
};

struct Warp {
    std::uint32_t ready = 0;        // lanes that can run and are not running
    std::uint32_t alive = 0;        // lanes that have not exited
    std::uint32_t collecting = 0;   // lanes that wait in a warp-wide operation
    std::uint32_t gathering = 0;    // lanes that wait to learn who else is at their __activemask
};

struct NamedBarrier {               // bar.sync, bar.arrive with a number of threads
    unsigned expected = 0, arrived = 0;
    std::uint32_t who[32];          // bit set of the threads that have arrived, valid while some have
};

struct Launch;
class Sanitizer;
class Profiler;

struct Worker;

struct Cluster {                    // blocks that one OS thread runs together; most launches have clusters of one block
    std::vector<Worker*> blocks;    // by rank
    void* main_stack_pointer = nullptr;
    bool aborted = false;
    unsigned missing = 0;           // living threads that have not come to the cluster's barrier in this phase
    std::uint32_t phase = 0;
};

struct Worker : Block {             // a block as it runs
    Launch* launch = nullptr;
    Cluster* cluster = nullptr;
    unsigned rank = 0;              // in the cluster
    Sanitizer* sanitizer = nullptr;
    Profiler* profiler = nullptr;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Thread* current = nullptr;
    unsigned current_warp = 0;
    unsigned alive = 0;
    unsigned at_barrier = 0;
    int vote_count = 0, vote_result_count = 0;
    unsigned vote_population = 0;
    NamedBarrier named[16];
    std::vector<unsigned> warpgroup_arrived;        // threads that wait in a wgmma, by warpgroup
    char* static_shared = nullptr;  // the kernel's __shared__ arrays, found when first asked for
    std::size_t static_shared_bytes = 0;
    char* parked_shared = nullptr;  // where they lie while another block of the cluster runs; null: no other block does
    std::vector<Stack*> stacks;     // free ones
    std::uint64_t polls = 0;        // atomics and watched volatile accesses: what a thread that waits for another does
    std::atomic<std::uint64_t> switches{0};
    volatile bool busy = false;     // inside code that must not be abandoned or preempted
    pthread_t os_thread{};
};

enum Outcome : int { kRunning = 0, kFinished = 1, kFailed = 2, kStopped = 3, kTimeout = 4, kDeadlock = 5, kCrashed = 6 };

struct Failure {                    // why a launch ended early, and where
    int outcome = kFinished;
    std::string text;
    uint3 block{}, thread{};
    std::uint64_t pc = 0;
};

struct TextRange { std::uintptr_t low = 0, high = 0; bool holds(std::uintptr_t pc) const { return pc >= low && pc < high; } };

struct Launch {
    void (*call)(void**) = nullptr;
    void** arguments = nullptr;
    char* (*tls_anchor)() = nullptr;
    dim3 grid, block, cluster;
    std::size_t shared_bytes = 0;
    std::uint64_t clusters = 0;
    std::atomic<std::uint64_t> next_cluster{0};
    std::atomic<bool> stop{false};
    int stop_reason = kStopped;
    TextRange kernel_text, runtime_text;
    std::unique_ptr<Sanitizer> sanitizer;       // one of the two at most watches
    std::unique_ptr<Profiler> profiler;

    std::mutex mutex;               // guards what follows
    std::condition_variable done;
    unsigned running = 0;
    Failure failure;
    std::string output;             // of device printf
    std::vector<Worker*> workers;
    std::vector<std::thread> os_threads;

    unsigned cluster_blocks() const { return cluster.x * cluster.y * cluster.z; }
    unsigned actors_a_block() const { return (block.x * block.y * block.z + 31) / 32 * 32; }
    uint3 block_at(std::uint64_t number, unsigned rank) const;      // its index, from its cluster's number and its rank there
    void fail(Worker& worker, int outcome, const std::string& text, void* pc);
};

// fiber.cpp
extern "C" void lk_switch(void** save, void* load);     // save the running context, go on with another
extern "C" void lk_resume();                            // go on with the context in rsi/x1; only ever jumped to
Stack* take_stack(Worker& worker);
void return_stacks(Worker& worker);
void* first_frame(Stack* stack, unsigned index, void (*entry)());

// scheduler.cpp
Worker& this_worker();
void run_cluster(Cluster& cluster, std::uint64_t number);
[[noreturn]] void leave_block(Worker& worker);          // abandon the running cluster from one of its threads
void give_way(Worker& worker);                          // let the others run, every so often
void wait_in(Worker& worker, Thread& thread, const char* what, void* pc);
inline Thread& this_thread() { return *static_cast<Thread*>(lk_fiber); }
inline void make_ready(Worker& worker, Thread& thread) {
    thread.waiting_for = nullptr;
    worker.warps[thread.warp].ready |= 1u << thread.lane;
}

// async.cpp
void find_static_shared(Worker& worker);                // fills in static_shared

// cluster.cpp
void begin_cluster(Cluster& cluster);
void enter_block(Worker& worker);                       // it runs next, and another block of the cluster has run
void leave_cluster_barrier(Worker& worker, Thread& thread);     // the thread has finished
Worker* shared_owner(const void* address, unsigned* offset);    // of the running cluster's blocks; null: not shared memory
char* in_block(Worker& block, const void* address);     // what lies there in the shared memory of another block of the cluster
// The one address that a byte of shared memory keeps, whichever block runs.
inline std::uintptr_t resting(const Worker& worker, std::uintptr_t address) {
    if (!worker.parked_shared) return address;
    const std::uintptr_t offset = address - reinterpret_cast<std::uintptr_t>(worker.static_shared);
    return offset < worker.static_shared_bytes ? reinterpret_cast<std::uintptr_t>(worker.parked_shared) + offset : address;
}

// signals.cpp
TextRange text_of(const void* address);
void install_signal_handlers();
void remove_signal_handlers();
class SignalStack {                 // a stack for this OS thread's crash handler: the fiber's own may be what overflowed
public:
    SignalStack();
    ~SignalStack();
private:
    std::vector<char> memory_;
};
void poke(Worker& worker);                              // preempt or stop it, as the launch says

}  // namespace lk
