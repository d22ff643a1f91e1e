// A launch, from Python's side: start it, wait for it, stop it, ask what came of it.
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <thread>

#include "machine.h"
#include "profiler.h"
#include "sanitizer.h"

namespace lk {
namespace {

constexpr std::size_t kSharedRedZone = 64 * 1024;
constexpr auto kPatience = std::chrono::milliseconds(10);   // how long a thread may run without giving way

// Shared memory of a block between two red zones, so that a stray index meets nobody else's data.
struct SharedMemory {
    char* mapping = static_cast<char*>(mmap(nullptr, kSharedWindow + 2 * kSharedRedZone, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    SharedMemory() = default;
    SharedMemory(const SharedMemory&) = delete;
    ~SharedMemory() { munmap(mapping, kSharedWindow + 2 * kSharedRedZone); }
    char* data() const { return mapping + kSharedRedZone; }
};

// A block's place in this OS thread.
struct Seat {
    SharedMemory dynamic;
    std::unique_ptr<SharedMemory> parked;
    Worker worker;

    Seat(Launch& launch, Cluster& cluster) {
        worker.launch = &launch;
        worker.cluster = &cluster;
        worker.rank = static_cast<unsigned>(cluster.blocks.size());
        worker.sanitizer = launch.sanitizer.get();
        worker.profiler = launch.profiler.get();
        worker.os_thread = pthread_self();
        worker.block_dim = launch.block;
        worker.grid_dim = launch.grid;
        worker.dynamic_shared = dynamic.data();
        cluster.blocks.push_back(&worker);
    }

    // Give the block's static shared memory, which is storage of the OS thread, a place while others of its cluster run.
    void park() {
        find_static_shared(worker);
        if (!worker.static_shared_bytes) return;
        parked.reset(new SharedMemory);
        worker.parked_shared = parked->data() + reinterpret_cast<std::uintptr_t>(worker.static_shared) % kSwizzlePeriod;
        std::memcpy(worker.parked_shared, worker.static_shared, worker.static_shared_bytes);
    }
};

void work(Launch& launch) {
    SignalStack signal_stack;
    Cluster cluster;
    std::deque<Seat> seats;
    for (unsigned rank = 0; rank < launch.cluster_blocks(); ++rank) seats.emplace_back(launch, cluster);
    Worker& worker = seats[0].worker;
    if (seats.size() > 1) {
        launch.tls_anchor();            // from here on this OS thread has the kernel's static shared memory
        for (Seat& seat : seats) seat.park();
    }
    {
        std::lock_guard<std::mutex> lock(launch.mutex);
        launch.workers.push_back(&worker);
    }
    if (worker.sanitizer) worker.sanitizer->begin_launch(cluster);
    if (worker.profiler) worker.profiler->begin_launch(cluster);
    lk_block = &worker;
    while (!launch.stop.load(std::memory_order_relaxed)) {
        const std::uint64_t number = launch.next_cluster.fetch_add(1, std::memory_order_relaxed);
        if (number >= launch.clusters) break;
        run_cluster(cluster, number);
    }
    lk_block = nullptr;
    if (worker.sanitizer) worker.sanitizer->end_launch();
    if (worker.profiler) worker.profiler->end_launch();
    for (Seat& seat : seats) {
        for (Thread& thread : seat.worker.threads)
            if (thread.stack) seat.worker.stacks.push_back(thread.stack);
        return_stacks(seat.worker);
    }
    std::lock_guard<std::mutex> lock(launch.mutex);
    launch.workers.erase(std::find(launch.workers.begin(), launch.workers.end(), &worker));
    if (--launch.running == 0) launch.done.notify_all();
}

}  // namespace

uint3 Launch::block_at(std::uint64_t number, unsigned rank) const {
    const unsigned wide = grid.x / cluster.x, high = grid.y / cluster.y;        // the grid, in clusters
    return uint3{static_cast<unsigned>(number % wide) * cluster.x + rank % cluster.x,
                 static_cast<unsigned>(number / wide % high) * cluster.y + rank / cluster.x % cluster.y,
                 static_cast<unsigned>(number / wide / high) * cluster.z + rank / cluster.x / cluster.y};
}

void Launch::fail(Worker& worker, int outcome, const std::string& text, void* pc) {
    std::lock_guard<std::mutex> lock(mutex);
    if (failure.outcome == kFinished) {
        failure.outcome = outcome;
        failure.text = text;
        failure.block = worker.block_idx;
        if (worker.current) failure.thread = worker.current->thread_idx;
        failure.pc = reinterpret_cast<std::uint64_t>(pc);
    }
    stop_reason = outcome;
    stop.store(true);
}

}  // namespace lk

using lk::Launch;

extern "C" {

struct lk_launch_request {
    void (*call)(void**);
    void** arguments;
    char* (*tls_anchor)();
    std::uint32_t grid[3], block[3], cluster[3];
    std::uint64_t shared_bytes;
    std::uint32_t workers;
    std::uint32_t watch;            // 0 no, 1 by the sanitizer, 2 by the profiler
    const lk::Region* regions;      // what the kernel may touch, for either
    std::uint64_t region_count;
    std::uint64_t l2_bytes;         // of the profiler's model of an L2 cache; 0: none
};

Launch* lk_start(const lk_launch_request* request) {
    auto* launch = new Launch;
    launch->call = request->call;
    launch->arguments = request->arguments;
    launch->grid = dim3(request->grid[0], request->grid[1], request->grid[2]);
    launch->block = dim3(request->block[0], request->block[1], request->block[2]);
    launch->cluster = dim3(request->cluster[0], request->cluster[1], request->cluster[2]);
    launch->tls_anchor = request->tls_anchor;
    launch->shared_bytes = request->shared_bytes;
    launch->clusters = static_cast<std::uint64_t>(launch->grid.x) * launch->grid.y * launch->grid.z / launch->cluster_blocks();
    launch->kernel_text = lk::text_of(reinterpret_cast<const void*>(request->call));
    launch->runtime_text = lk::text_of(reinterpret_cast<const void*>(&lk_start));
    if (request->watch == 1)
        launch->sanitizer.reset(new lk::Sanitizer(*launch, request->regions, request->region_count, request->tls_anchor));
    if (request->watch == 2)
        launch->profiler.reset(new lk::Profiler(*launch, request->regions, request->region_count, request->tls_anchor,
                                                request->l2_bytes));
    lk::install_signal_handlers();
    const std::uint64_t wanted = request->watch ? 1 : std::max(1u, request->workers);
    launch->running = static_cast<unsigned>(std::min<std::uint64_t>(wanted, launch->clusters));
    for (unsigned i = launch->running; i > 0; --i) launch->os_threads.emplace_back(lk::work, std::ref(*launch));
    return launch;
}

// Wait for at most `seconds`; 0 while it still runs, else the outcome.
int lk_wait(Launch* launch, double seconds) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    std::unique_lock<std::mutex> lock(launch->mutex);
    while (launch->running) {
        if (launch->done.wait_for(lock, lk::kPatience) == std::cv_status::no_timeout) continue;
        for (lk::Worker* worker : launch->workers) lk::poke(*worker);
        if (std::chrono::steady_clock::now() >= deadline) break;
    }
    if (launch->running) return lk::kRunning;
    if (launch->failure.outcome != lk::kFinished) return launch->failure.outcome;
    return launch->stop ? launch->stop_reason : static_cast<int>(lk::kFinished);
}

void lk_stop(Launch* launch, int reason) {
    std::lock_guard<std::mutex> lock(launch->mutex);
    launch->stop_reason = reason;
    launch->stop = true;
}

struct lk_failure {
    int outcome;
    std::uint32_t block[3], thread[3];
    std::uint64_t pc;
    const char* text;
};

void lk_get_failure(Launch* launch, lk_failure* out) {
    const lk::Failure& failure = launch->failure;
    *out = lk_failure{failure.outcome, {failure.block.x, failure.block.y, failure.block.z},
                      {failure.thread.x, failure.thread.y, failure.thread.z}, failure.pc, failure.text.c_str()};
}

const char* lk_output(Launch* launch) { return launch->output.c_str(); }

std::uint64_t lk_finding_count(Launch* launch) { return launch->sanitizer ? launch->sanitizer->findings.size() : 0; }
const lk::Finding* lk_findings(Launch* launch) { return launch->sanitizer->findings.data(); }

// For each of `count` items of a region the linear block and thread that wrote it last; ~0 where none did.
void lk_writers(Launch* launch, int region, std::uint64_t item_bytes, std::uint64_t count, std::uint32_t* block_and_thread) {
    for (std::uint64_t i = 0; i < count; ++i) {
        std::uint32_t* out = block_and_thread + 2 * i;
        if (!launch->sanitizer->writer(region, i * item_bytes, out, out + 1)) out[0] = out[1] = ~0u;
    }
}

std::uint64_t lk_profile_line_count(Launch* launch) { return launch->profiler ? launch->profiler->counts.size() : 0; }
const lk::LineCount* lk_profile_lines(Launch* launch) { return launch->profiler->counts.data(); }
std::uint64_t lk_profile_sample_count(Launch* launch) { return launch->profiler ? launch->profiler->samples.size() : 0; }
const lk::Sample* lk_profile_samples(Launch* launch) { return launch->profiler->samples.data(); }
std::uint64_t lk_profile_arrival_count(Launch* launch) { return launch->profiler ? launch->profiler->arrivals.size() : 0; }
const lk::BarrierArrival* lk_profile_arrivals(Launch* launch) { return launch->profiler->arrivals.data(); }
void lk_profile_totals(Launch* launch, lk::Totals* totals) { *totals = launch->profiler->totals; }

void lk_free(Launch* launch) {
    for (std::thread& os_thread : launch->os_threads) os_thread.join();
    lk::remove_signal_handlers();
    delete launch;
}

}  // extern "C"
