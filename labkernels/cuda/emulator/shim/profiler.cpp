#include "profiler.h"

#include <algorithm>

#include "machine.h"
#include "sanitizer.h"

namespace lk {
namespace {

constexpr std::size_t kLongestTrace = 1 << 14;      // events of one lane before the others must catch up
constexpr std::uint32_t kBlocksOnTimeline = 4;
constexpr unsigned kSectorBytes = 32, kBanks = 32, kWordBytes = 4;

bool is_global(std::uint32_t kind) { return kind <= kGlobalAtomic; }
bool is_shared(std::uint32_t kind) { return kind >= kSharedLoad && kind <= kSharedAtomic; }

// Passes through shared memory that `lanes` lanes need together: the most distinct words that one bank must give.
unsigned wavefronts(const std::uintptr_t* address, unsigned lanes, unsigned bytes) {
    std::uintptr_t words[kBanks][32];
    unsigned filled[kBanks] = {}, most = 0;
    for (unsigned i = 0; i < lanes; ++i) {
        for (std::uintptr_t word = address[i] / kWordBytes; word * kWordBytes < address[i] + bytes; ++word) {
            const unsigned bank = static_cast<unsigned>(word % kBanks);
            unsigned j = 0;
            while (j < filled[bank] && words[bank][j] != word) ++j;
            if (j < filled[bank]) continue;
            words[bank][filled[bank]++] = word;
            most = std::max(most, filled[bank]);
        }
    }
    return most;
}

}  // namespace

Profiler::Profiler(Launch& launch, const Region* regions, std::uint64_t count, char* (*tls_anchor)(), std::uint64_t l2_bytes)
    : launch_(launch), tls_anchor_(tls_anchor), l2_sectors_(l2_bytes / kSectorBytes) {
    for (std::uint64_t i = 0; i < count; ++i)
        spans_.push_back(Span{static_cast<std::uintptr_t>(regions[i].low), static_cast<std::uintptr_t>(regions[i].high),
                              regions[i].kind == kStaticShared, static_cast<int>(i)});
}

void Profiler::begin_launch(Cluster& cluster) {
    const auto anchor = reinterpret_cast<std::uintptr_t>(tls_anchor_());
    for (Span& span : spans_)
        if (span.shared) span.low += anchor, span.high += anchor;
    const auto dynamic = static_cast<int>(spans_.size());
    const std::vector<Span> known = spans_;
    for (const Worker* block : cluster.blocks) {        // each block has its own copy of what is shared
        const auto low = reinterpret_cast<std::uintptr_t>(block->dynamic_shared);
        spans_.push_back(Span{low, low + launch_.shared_bytes, true, dynamic});
        for (const Span& span : known)
            if (span.shared && block->parked_shared)
                spans_.push_back(Span{resting(*block, span.low), resting(*block, span.low) + (span.high - span.low), true, span.array});
    }
}

void Profiler::begin_cluster(Worker& worker, std::uint64_t number) {
    const std::vector<Worker*>& blocks = worker.cluster->blocks;
    blocks_.clear();
    for (const Worker* block : blocks) {
        const uint3 index = launch_.block_at(number, block->rank);
        blocks_.push_back(index.x + launch_.grid.x * (index.y + launch_.grid.y * index.z));
    }
    traces_.resize(blocks.size() * launch_.actors_a_block());
    for (Trace& trace : traces_) trace.events.clear(), trace.next = 0, trace.together = 0, trace.paused = false;
    warp_requests_.assign(traces_.size() / 32, 0);
}

Profiler::Trace* Profiler::traces_of(const Worker& worker, unsigned warp) {
    return &traces_[worker.rank * launch_.actors_a_block() + warp * 32];
}

void Profiler::access(Worker& worker, Thread& thread, std::uintptr_t address, unsigned bytes, bool write, bool atomic,
                      std::uint64_t pc) {
    address = resting(worker, address);
    if (const int array = array_at(address); array >= 0) {
        const std::uint32_t first = spans_[array].shared ? kSharedLoad : kGlobalLoad;
        add(worker, thread, pc, static_cast<TraceKind>(first + (atomic ? 2 : write ? 1 : 0)), bytes, address);
        return;
    }
    const auto bottom = reinterpret_cast<std::uintptr_t>(thread.stack->bottom);
    if (address >= bottom && address < reinterpret_cast<std::uintptr_t>(thread.stack->top))
        add(worker, thread, pc, write ? kLocalStore : kLocalLoad, bytes, address - bottom);
}

int Profiler::array_at(std::uintptr_t address) const {
    for (std::size_t i = 0; i < spans_.size(); ++i)
        if (address >= spans_[i].low && address < spans_[i].high) return static_cast<int>(i);
    return -1;
}

void Profiler::basic_block(Worker& worker, Thread& thread, std::uint64_t pc) {
    if (!worker.busy) add(worker, thread, pc, kBasicBlock, 0, 0);      // else it computes a shuffle's results for all lanes
}

void Profiler::arrive(Worker& worker, Thread& thread, std::uint64_t pc) { add(worker, thread, pc, kBarrier, 0, 0); }

void Profiler::add(Worker& worker, Thread& thread, std::uint64_t pc, TraceKind kind, unsigned bytes, std::uintptr_t address) {
    Trace& trace = traces_[thread.actor];
    const bool was_busy = worker.busy;
    worker.busy = true;
    trace.events.push_back(Event{static_cast<std::uint32_t>(pc - launch_.kernel_text.low), kind | bytes << 8, address});
    worker.busy = was_busy;
    if (trace.events.size() < kLongestTrace || was_busy) return;
    trace.paused = true;                        // lane_waits() merges and wakes it when the others of the warp have caught up
    wait_in(worker, thread, "the profiler", nullptr);
}

void Profiler::lane_waits(Worker& worker, Thread& thread) {
    if (worker.warps[thread.warp].ready == 0) merge(worker, thread.warp);
}

// Execute what the warp executes next, if that is known. Where `strict`, it is not while a lane that waits has no step left: it may
// go on with one that others have before them. Its last step is kept too, so that a parting of ways is seen.
bool Profiler::step(Worker& worker, unsigned warp, unsigned lanes, bool strict) {
    Trace* traces = traces_of(worker, warp);
    std::uint32_t lowest = ~0u, lowest_barrier = ~0u;           // who stands at a barrier waits there for the others
    for (unsigned i = 0; i < lanes; ++i) {
        const std::size_t left = traces[i].events.size() - traces[i].next;
        if (left < 2 && (strict ? !worker.threads[warp * 32 + i].finished : traces[i].paused)) return false;
        if (!left) continue;
        const Event& event = traces[i].events[traces[i].next];
        std::uint32_t& least = (event.kind_and_bytes & 0xff) == kBarrier ? lowest_barrier : lowest;
        least = std::min(least, event.pc);
    }
    if (lowest == ~0u) lowest = lowest_barrier;
    if (lowest == ~0u) return false;
    const Event* leader = nullptr;
    std::uint32_t together = 0;
    for (unsigned i = 0; i < lanes; ++i) {
        if (traces[i].next == traces[i].events.size()) continue;
        const Event& event = traces[i].events[traces[i].next];
        if (event.pc != lowest || (leader && event.kind_and_bytes != leader->kind_and_bytes)) continue;
        if (!leader) leader = &event;
        together |= 1u << i;
    }
    count(worker, warp, *leader, together, traces);
    for (std::uint32_t rest = together; rest; rest &= rest - 1) ++traces[__builtin_ctz(rest)].next;
    note_divergence(together, traces);
    return true;
}

void Profiler::merge(Worker& worker, unsigned warp) {
    worker.busy = true;
    const unsigned lanes = std::min<unsigned>(32, static_cast<unsigned>(worker.threads.size()) - warp * 32);
    Trace* traces = traces_of(worker, warp);
    for (unsigned i = 0; i < lanes; ++i)
        if (traces[i].together) note_divergence(traces[i].together, traces);
    while (step(worker, warp, lanes, true)) {}
    for (unsigned i = 0; i < lanes; ++i)        // a lane that works alone for long while others wait for it
        if (traces[i].paused && traces[i].next == 0)
            while (step(worker, warp, lanes, false)) {}
    for (unsigned i = 0; i < lanes; ++i) {
        traces[i].events.erase(traces[i].events.begin(), traces[i].events.begin() + static_cast<std::ptrdiff_t>(traces[i].next));
        traces[i].next = 0;
        if (!traces[i].paused || traces[i].events.size() >= kLongestTrace) continue;
        traces[i].paused = false;
        worker.threads[warp * 32 + i].waiting_for = nullptr;
        worker.warps[warp].ready |= 1u << i;
    }
    worker.busy = false;
}

LineCount& Profiler::line(const Event& event) {
    const std::uint64_t key = static_cast<std::uint64_t>(event.pc) << 32 | event.kind_and_bytes;
    const auto [place, is_new] = index_.emplace(key, counts.size());
    if (is_new) {
        counts.emplace_back();
        counts.back().pc = event.pc + launch_.kernel_text.low;
        counts.back().kind = event.kind_and_bytes & 0xff;
        counts.back().access_bytes = event.kind_and_bytes >> 8;
    }
    return counts[place->second];
}

// One warp instruction: `lanes` of the warp, each with the next event of its trace.
void Profiler::count(Worker& worker, unsigned warp, const Event& event, std::uint32_t lanes, const Trace* traces) {
    const std::uint32_t block = blocks_[worker.rank];
    std::uint64_t& requests = warp_requests_[worker.rank * launch_.actors_a_block() / 32 + warp];
    LineCount& here = line(event);
    const unsigned active = static_cast<unsigned>(__builtin_popcount(lanes));
    const unsigned bytes = here.access_bytes;
    ++here.requests;
    here.lanes += active;
    here.bytes += static_cast<std::uint64_t>(active) * bytes;
    if (here.kind == kBarrier && block < kBlocksOnTimeline) arrivals.push_back(BarrierArrival{block, warp, requests});
    if (here.kind >= kBarrier) return;
    ++requests;

    std::uintptr_t address[32];
    unsigned n = 0;
    for (std::uint32_t rest = lanes; rest; rest &= rest - 1) {
        const Trace& trace = traces[__builtin_ctz(rest)];
        address[n++] = trace.events[trace.next].address;
    }
    if (is_shared(here.kind)) {                 // wide accesses go by half warps (8 bytes) or quarter warps (16 bytes)
        const unsigned group = bytes > 8 ? 8 : bytes > 4 ? 16 : 32;
        for (unsigned i = 0; i < n; i += group) {
            const unsigned passes = wavefronts(address + i, std::min(group, n - i), bytes);
            here.wavefronts += passes;
            here.conflicts += passes - 1;
        }
    } else if (is_global(here.kind)) {
        std::vector<std::uintptr_t> sectors;
        for (unsigned i = 0; i < n; ++i)
            for (std::uintptr_t sector = address[i] / kSectorBytes; sector * kSectorBytes < address[i] + bytes; ++sector)
                sectors.push_back(sector);
        std::sort(sectors.begin(), sectors.end());
        sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
        here.sectors += sectors.size();
        for (std::uintptr_t sector : sectors) look_up(sector, here.kind != kGlobalLoad);
    }
    const std::uint64_t key = static_cast<std::uint64_t>(event.pc) << 32 | event.kind_and_bytes;
    const auto [place, is_new] = sampled_.emplace(key, samples.size());
    if (is_new) samples.emplace_back();
    Sample& sample = samples[place->second];            // kept: the request of most lanes, in the first block and warp that has one
    const unsigned most = static_cast<unsigned>(__builtin_popcount(sample.active));
    if (active < most || (active == most && (block != sample.block || warp >= sample.warp))) return;
    sample = Sample{};
    sample.pc = here.pc;
    sample.kind = here.kind;
    sample.bytes = bytes;
    sample.active = lanes;
    sample.block = block;
    sample.warp = warp;
    const int span = array_at(address[0]);
    sample.array = span < 0 ? span : spans_[span].array;
    sample.low = span < 0 ? 0 : spans_[span].low;
    for (std::uint32_t rest = lanes; rest; rest &= rest - 1) {
        const unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
        sample.address[lane] = traces[lane].events[traces[lane].next].address;
    }
}

// `lanes` went one step together: if they part now, those at the lowest address leave the others behind.
void Profiler::note_divergence(std::uint32_t lanes, Trace* traces) {
    const Event* first = nullptr;
    bool parted = false, some_wait = false;
    for (std::uint32_t rest = lanes; rest; rest &= rest - 1) {
        Trace& trace = traces[__builtin_ctz(rest)];
        trace.together = 0;
        if (trace.next == trace.events.size()) {
            some_wait = true;
            continue;
        }
        const Event& event = trace.events[trace.next];
        parted |= first && event.pc != first->pc;
        if (!first || event.pc < first->pc) first = &event;
    }
    if (!first) traces[__builtin_ctz(lanes)].together = lanes;      // asked again when they go on
    else if (parted || some_wait) ++line(*first).divergent;
}

void Profiler::look_up(std::uintptr_t sector, bool write) {
    unsigned& state = touched_[sector];
    if (write && !(state & 2)) state |= 2, totals.stored_bytes += kSectorBytes;
    if (!write && !state) state |= 1, totals.loaded_bytes += kSectorBytes;
    if (!l2_sectors_) return;
    const auto known = cached_.find(sector);
    if (known != cached_.end()) {
        ++totals.l2_hits;
        recent_.splice(recent_.begin(), recent_, known->second);
        return;
    }
    ++totals.l2_misses;
    recent_.push_front(sector);
    cached_[sector] = recent_.begin();
    if (recent_.size() > l2_sectors_) {
        cached_.erase(recent_.back());
        recent_.pop_back();
    }
}

void Profiler::end_launch() {
    std::sort(counts.begin(), counts.end(), [](const LineCount& a, const LineCount& b) {
        return a.pc != b.pc ? a.pc < b.pc : a.kind < b.kind;
    });
}

}  // namespace lk
