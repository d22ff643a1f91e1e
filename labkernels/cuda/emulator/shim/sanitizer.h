// The sanitizer: sees every access of an instrumented kernel (through the compiler's thread-sanitizer hooks) and every
// synchronisation (through the scheduler), and knows what an access may touch.
//
// Races are found by happens-before, not by luck of the schedule: each thread has a clock and a view, the clocks of the
// others that it has synchronised with. Two accesses to the same bytes, one of them a write, must be ordered by a view.
// __syncthreads joins the views of a block, __syncwarp those of a warp; an atomic (or a volatile access to global
// memory) publishes what its thread had fenced with __threadfence, and takes up what others published there.
//
// An asynchronous copy or a wgmma is done by an agent, a thread that the user did not write: it starts from its issuer's view,
// and who waits for its mbarrier or group has it in view. Agents see ordinary writes only behind a proxy fence of the writer.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace lk {

struct Cluster;
struct Launch;
struct Thread;
struct Worker;

// kHidden may be added: the compiler's own variable, in nobody's way; kUnsettled: the kernel launched before may still be using it.
enum RegionKind : std::uint32_t { kGlobal = 0, kStaticShared = 1, kModule = 2, kDynamicShared = 3, kHidden = 4, kUnsettled = 8 };

struct Region {                     // memory that the kernel may touch; static shared: relative to the TLS anchor
    std::uint64_t low, high;
    std::uint32_t kind;
    std::uint32_t item_bytes;
};

enum FindingKind : std::int32_t {
    kOutOfBounds, kRace, kUninitialized, kBarrierDivergence, kMisaligned, kDeadlocked, kTimedOut, kCrash
};
enum AccessKind : std::int32_t { kRead, kWrite, kAtomic };

constexpr std::uintptr_t kClusterChannel = 0;       // the cluster's barrier (named ones: 16 * rank + 1 to 15)

struct Finding {
    std::int32_t kind = 0, access = 0, other_access = 0;
    std::int32_t region = -1;               // index into the regions, the nearest one for an address outside all
    std::uint32_t block[3] = {}, other_block[3] = {};
    std::uint32_t thread = 0, other_thread = 0;     // linear index in the block; other_thread ~0u: none
    std::uint32_t threads[32] = {};         // bit set of threads concerned (barriers)
    std::uint64_t pc = 0, other_pc = 0;
    std::uint64_t address = 0;
    std::int64_t offset = 0;                // of the address from the region's start, in bytes
    std::uint32_t bytes = 0;
    std::int32_t owner = -1;                // the block, as a linear index, in whose shared memory it lies, if that is another one
    char text[184] = {};
};

constexpr std::uint32_t kNobody = ~0u;
inline void set_bit(Finding* finding, unsigned thread) { finding->threads[thread / 32] |= 1u << (thread % 32); }
std::uint64_t finding_key(FindingKind kind, const void* pc, const void* other_pc);
void begin_finding(Finding& finding, const Worker& worker, const Thread* thread, FindingKind kind, void* pc, void* other_pc);

struct View;
using ViewPointer = std::shared_ptr<const View>;
struct View {
    std::vector<std::uint32_t> clocks;                                      // of the actors of its cluster
    std::vector<std::pair<std::uint32_t, ViewPointer>> foreign;            // of other clusters, by stamp
    bool waited = false;                                                    // for the kernel before: grid_dependency_wait

    std::uint32_t clock_of(std::size_t thread) const { return thread < clocks.size() ? clocks[thread] : 0; }
    void set(std::size_t thread, std::uint32_t clock);
    void merge(const View& other);
};

class Sanitizer {
public:
    Sanitizer(Launch& launch, const Region* regions, std::uint64_t count, char* (*tls_anchor)());
    ~Sanitizer();

    void begin_launch(Cluster& cluster);
    void begin_cluster(std::uint64_t number);
    void access(Worker& worker, Thread& thread, std::uintptr_t address, unsigned bytes, AccessKind kind, bool is_volatile,
                bool check_alignment, void* pc);
    void misaligned(Worker& worker, Thread& thread, std::uintptr_t address, unsigned alignment, AccessKind kind, void* pc);
    void array_index(Worker& worker, Thread& thread, const char* array_type, std::int64_t index, void* pc);
    void atomic(Worker& worker, Thread& thread, void* address, unsigned bytes, void* pc);
    void fence(Worker& worker, Thread& thread);
    void kernel_before_ended(Worker& worker, Thread& thread);
    void block_barrier(Worker& worker, Thread* running);
    void warp_barrier(Worker& worker, unsigned warp, std::uint32_t members);
    void warp_operation(Worker& worker, Thread& thread, std::uint32_t mask, const char* what, void* pc);
    void undefined_lane(Worker& worker, Thread& thread, const char* what, unsigned source);
    void undefine(std::uintptr_t address, unsigned bytes);      // shared memory: as if nobody had written it (async_copies.cpp)
    void thread_exit(Worker& worker, Thread& thread);
    void stalled(Worker& worker);
    void timeout(Worker& worker, Thread& thread, void* pc);
    void end_launch();
    bool writer(int region, std::uint64_t offset, std::uint32_t* block, std::uint32_t* thread) const;   // who wrote there last
    void crash(Worker& worker, Thread& thread, const std::string& text, void* address, void* pc);

    // sanitizer_async.cpp. A channel is what threads arrive at and wait for: a named barrier (1 to 15) or an mbarrier (its address).
    // Who arrives from another block of the cluster is `far`, and known only to those who wait with the cluster's scope.
    void channel_arrive(Worker& worker, Thread& thread, std::uintptr_t channel, bool far);
    void channel_complete(Worker& worker, std::uintptr_t channel);
    void arrives_again(Worker& worker, Thread& thread, void* pc);       // at a named barrier that still counts its last arrival
    void channel_acquire(Worker& worker, Thread& thread, std::uintptr_t channel, bool cluster_scope);
    void mbarrier_access(Worker& worker, Thread& thread, std::uint64_t* barrier, bool init, void* pc);
    void phase_complete(Worker& worker, std::uint64_t* barrier);
    void begin_load(Worker& worker, Thread& thread, std::uint64_t* barrier);        // what agent_access does next, it does for this
    void begin_store(Worker& worker, Thread& thread, bool global_side);
    void begin_wgmma(Worker& worker, Thread* warpgroup);
    void agent_access(Worker& worker, const void* address, unsigned bytes, AccessKind kind, void* pc);
    void remember_swizzle(const void* address, unsigned swizzle_bytes);
    void check_swizzle(Worker& worker, const void* address, unsigned swizzle_bytes, void* pc);
    void commit_stores(Thread& thread);
    void wait_stores(Worker& worker, Thread& thread, unsigned pending, bool read_only);
    void proxy_fence(Worker& worker, Thread& thread);
    void wgmma_registers(Worker& worker, Thread& thread, const void* d, unsigned d_bytes, const void* a, unsigned a_bytes, void* pc);
    void wgmma_fence(Thread& thread);
    void commit_wgmma(Thread& thread);
    void wait_wgmma(Worker& worker, Thread& thread, unsigned pending);

    // sanitizer_cluster.cpp
    void cluster_barrier(Worker& worker);                               // its phase is over
    void end_cluster(Cluster& cluster);                                 // all threads have left
    [[noreturn]] void misuse(Worker& worker, Thread& thread, FindingKind kind, const std::string& text, void* pc);

    std::vector<Finding> findings;

private:
    struct Access { std::uint32_t stamp, clock, pc; std::uint16_t thread; std::uint8_t mask, atomic; };     // thread: an actor
    struct Cell {                           // what is known of 4 bytes
        Access writes[4];                   // the last plain write to each byte
        Access reads[2];                    // the last reader, and the last one of another warp or block
        Access atomics;                     // the last atomic
        std::uint32_t written_stamp;
        std::uint8_t written_mask;
    };
    struct Suspicion { std::uint32_t stamp, thread; std::uintptr_t address; std::uint64_t key; Finding finding; };
    struct Shadow { Cell* cells = nullptr; std::size_t bytes = 0; };
    struct Actor {                          // who makes an access: a thread, or (with a view of its proxy) an agent
        std::uint32_t index, clock;
        const View* view;
        const View* proxied = nullptr;
        const char* what = "";              // of an agent: "asynchronous copy", "wgmma"
    };
    struct Async;                           // sanitizer_async.cpp
    struct Reach;                           // into another block's shared memory: sanitizer_cluster.cpp

    void add_regions(const Cluster& cluster);
    void place(Finding& finding, const Worker& worker, int region, std::uintptr_t address) const;
    void reach(Worker& worker, Thread& thread, const Actor& actor, int region, std::uintptr_t address, unsigned bytes, AccessKind kind, void* pc);
    void begin_reach();
    void leave_reached(Worker& worker, Thread& thread);
    std::uint64_t block_of(std::uint32_t stamp, std::uint32_t actor) const;     // its linear index
    std::uint32_t thread_of(std::uint32_t actor) const { return actor % actors_a_block_; }
    int region_of(std::uintptr_t low, std::uintptr_t high);
    int nearest_region(std::uintptr_t address) const;
    Cell* cells_of(int region);
    void record(Worker& worker, Thread& thread, const Actor& actor, std::uintptr_t address, unsigned bytes, AccessKind kind,
                bool is_volatile, bool check_alignment, void* pc);
    bool ordered(const Access& earlier, const Actor& actor) const;
    bool visible(const Access& earlier, const Actor& actor) const;
    bool conflicts(const Access& earlier, std::uint8_t mask, const Actor& actor, bool atomic, bool shared, bool was_written) const;
    void race(Worker& worker, Thread& thread, const Actor& actor, int region, std::uintptr_t address, unsigned bytes, AccessKind kind,
              const Access& earlier, AccessKind earlier_kind, void* pc);
    void acquire_release(Thread& thread, std::uintptr_t address);
    ViewPointer join(const std::vector<const Thread*>& group, const std::vector<ViewPointer>& views, bool own) const;
    void synchronise(const std::vector<const Thread*>& group);
    Async& async();
    const char* agent_name(std::uint32_t index, std::uint32_t* issuer) const;
    void registers_access(Worker& worker, Thread& thread, std::uintptr_t address, unsigned bytes, AccessKind kind, void* pc);
    void forget_swizzle(std::uintptr_t address, unsigned bytes);
    void begin_cluster_async();
    void agents_left(Worker& worker, Thread& thread);
    void report_in_words(Worker& worker, Thread& thread, FindingKind kind, const char* text, void* pc);
    Finding* report(Worker& worker, Thread* thread, FindingKind kind, void* pc, void* other_pc = nullptr);
    bool is_news(std::uint64_t key);
    void end_block_after(Worker& worker, const Finding* finding);

    Launch& launch_;
    char* (*tls_anchor_)();
    std::vector<Region> regions_;
    std::vector<Shadow> shadows_;
    int last_region_ = 0;
    struct Owner { int region; unsigned rank; };
    std::vector<Owner> owners_;             // of regions_: whose shared memory, and the region by which Python knows it
    std::uint32_t actors_a_block_ = 1;
    std::uint32_t stamp_ = 0;               // of the running cluster: its number + 1
    std::vector<std::uint32_t> clocks_;     // of the cluster's threads, by actor
    std::vector<ViewPointer> views_, fenced_, proxied_;
    bool proxies_used_ = false;
    std::unique_ptr<Async> async_;          // from the first asynchronous operation of the launch on
    std::shared_ptr<Reach> reach_;          // where clusters have more than one block
    std::unordered_map<std::uintptr_t, std::vector<std::pair<std::uint32_t, ViewPointer>>> published_;
    std::unordered_set<std::uint64_t> seen_;
    std::vector<Suspicion> suspicions_;     // plain reads of what others update atomically: see race()
    unsigned fatal_ = 0;
};

}  // namespace lk
