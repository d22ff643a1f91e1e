// The profiler: counts what a kernel's warps ask of memory, in Nsight Compute's terms, by place in the source.
//
// Lanes run one after another here, a GPU runs them in step. Each lane therefore leaves a trace (basic blocks entered, memory
// accessed), and when no lane of the warp can go on, the traces are merged as a warp would have executed them: whoever is
// at the lowest address of code goes first, together with all that stand at the same one. That is where a structured program
// reconverges.
#pragma once
#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

namespace lk {

struct Cluster;
struct Launch;
struct Region;
struct Thread;
struct Worker;

enum TraceKind : std::uint32_t {
    kGlobalLoad, kGlobalStore, kGlobalAtomic, kSharedLoad, kSharedStore, kSharedAtomic, kLocalLoad, kLocalStore, kBarrier, kBasicBlock
};

struct LineCount {                  // of one place in the code and one kind of event
    std::uint64_t pc = 0;
    std::uint32_t kind = 0;
    std::uint32_t access_bytes = 0;                     // asked by one lane
    std::uint64_t requests = 0, lanes = 0, bytes = 0;   // warp instructions; lanes active in them; bytes asked
    std::uint64_t sectors = 0;                          // of 32 bytes, distinct in each request
    std::uint64_t wavefronts = 0, conflicts = 0;        // shared memory: passes needed, and those beyond the fewest possible
    std::uint64_t divergent = 0;                        // times that a warp came here and left lanes behind that were with it
};

struct Sample {                     // one request of a place in the code, lane by lane, for pictures
    std::uint64_t pc = 0;
    std::uint32_t kind = 0, bytes = 0, active = 0, block = 0, warp = 0;
    std::int32_t array = -1;                            // the array of the first active lane, as listed in the request; -1: local memory
    std::uint64_t low = 0;                              // where that array begins
    std::uint64_t address[32] = {};
};

struct BarrierArrival { std::uint32_t block, warp; std::uint64_t requests; };    // how far a warp was when it came to a barrier

struct Totals {
    std::uint64_t loaded_bytes = 0, stored_bytes = 0;       // distinct sectors of global memory touched, in bytes
    std::uint64_t l2_hits = 0, l2_misses = 0;               // sectors looked up in the model of L2, if there is one
};

class Profiler {
public:
    Profiler(Launch& launch, const Region* regions, std::uint64_t count, char* (*tls_anchor)(), std::uint64_t l2_bytes);

    void begin_launch(Cluster& cluster);
    void begin_cluster(Worker& worker, std::uint64_t number);
    void access(Worker& worker, Thread& thread, std::uintptr_t address, unsigned bytes, bool write, bool atomic, std::uint64_t pc);
    void basic_block(Worker& worker, Thread& thread, std::uint64_t pc);
    void arrive(Worker& worker, Thread& thread, std::uint64_t pc);         // at __syncthreads
    void lane_waits(Worker& worker, Thread& thread);                       // or has finished
    void end_launch();

    std::vector<LineCount> counts;
    std::vector<Sample> samples;
    std::vector<BarrierArrival> arrivals;
    Totals totals;

private:
    struct Event { std::uint32_t pc, kind_and_bytes; std::uintptr_t address; };
    struct Trace {
        std::vector<Event> events;
        std::size_t next = 0;
        std::uint32_t together = 0;                 // the lanes that stand at one place, if nobody knows yet where they go
        bool paused = false;
    };

    void add(Worker& worker, Thread& thread, std::uint64_t pc, TraceKind kind, unsigned bytes, std::uintptr_t address);
    void merge(Worker& worker, unsigned warp);
    bool step(Worker& worker, unsigned warp, unsigned lanes, bool strict);
    void count(Worker& worker, unsigned warp, const Event& event, std::uint32_t lanes, const Trace* traces);
    Trace* traces_of(const Worker& worker, unsigned warp);
    void note_divergence(std::uint32_t lanes, Trace* traces);
    int array_at(std::uintptr_t address) const;
    LineCount& line(const Event& event);
    void look_up(std::uintptr_t sector, bool write);

    Launch& launch_;
    char* (*tls_anchor_)();
    struct Span { std::uintptr_t low, high; bool shared; int array; };      // array: the number by which Python knows it
    std::vector<Span> spans_;                       // the arrays that are not local memory
    std::vector<Trace> traces_;                     // of the cluster's threads
    std::vector<std::uint64_t> warp_requests_;
    std::vector<std::uint32_t> blocks_;             // linear indices of the cluster's blocks, by rank
    std::unordered_map<std::uint64_t, std::size_t> index_;      // of a place and kind in counts
    std::unordered_map<std::uint64_t, std::size_t> sampled_;    // of a place and kind in samples
    std::unordered_map<std::uintptr_t, unsigned> touched_;      // sector -> 1 loaded before it was stored, 2 stored
    std::uint64_t l2_sectors_;
    std::list<std::uintptr_t> recent_;                          // sectors in the model of L2, the last used first
    std::unordered_map<std::uintptr_t, std::list<std::uintptr_t>::iterator> cached_;
};

}  // namespace lk
