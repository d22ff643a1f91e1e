// The sanitizer's view of clusters: whose shared memory an access reaches into, and whether that block is surely there.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

#include "machine.h"
#include "sanitizer.h"

namespace lk {

// A block's shared memory is there from its first thread's start to its last one's end: an access by another block must come after
// something that one of its threads did, and before something that one of them waits for.
struct Sanitizer::Reach {
    struct Access { std::uint32_t clock; void* pc; Finding finding; };
    struct Target {
        std::map<std::uint32_t, Access> last;       // by actor
        View left;                                  // what the threads knew that have left
        ViewPointer latest;                         // of them
    };
    std::vector<Target> targets;                    // by rank
};

namespace {

const char* const kTooEarly = "reach: early";
const char* const kTooLate = "reach: late";

}  // namespace

// The cluster's blocks have each a copy of the shared arrays, where they rest.
void Sanitizer::add_regions(const Cluster& cluster) {
    const std::size_t known = regions_.size();
    for (std::size_t i = 0; i < known; ++i) {
        const std::uint32_t kind = regions_[i].kind & ~kHidden;
        if (kind == kDynamicShared) {
            for (std::size_t rank = 1; rank < cluster.blocks.size(); ++rank) {
                const auto low = reinterpret_cast<std::uint64_t>(cluster.blocks[rank]->dynamic_shared);
                regions_.push_back(Region{low, low + launch_.shared_bytes, kind, 4});
                owners_.push_back({static_cast<int>(i), static_cast<unsigned>(rank)});
            }
        } else if (kind == kStaticShared) {
            const Region here = regions_[i];
            for (std::size_t rank = 0; rank < cluster.blocks.size(); ++rank) {
                Region there = here;
                there.low = resting(*cluster.blocks[rank], here.low);
                there.high = there.low + (here.high - here.low);
                if (rank == 0) regions_[i] = there;
                else regions_.push_back(there), owners_.push_back({static_cast<int>(i), static_cast<unsigned>(rank)});
            }
        }
    }
    reach_.reset(new Reach);
}

std::uint64_t Sanitizer::block_of(std::uint32_t stamp, std::uint32_t actor) const {
    const uint3 index = launch_.block_at(stamp - 1, std::min(actor / actors_a_block_, launch_.cluster_blocks() - 1));
    return index.x + std::uint64_t{launch_.grid.x} * (index.y + std::uint64_t{launch_.grid.y} * index.z);
}

// What lies at an address, as Python knows it: the region's number there, and whose it is if it is not the running block's.
void Sanitizer::place(Finding& finding, const Worker& worker, int region, std::uintptr_t address) const {
    finding.address = address;
    finding.region = region < 0 ? region : owners_[region].region;
    if (region < 0) return;
    finding.offset = static_cast<std::int64_t>(address - regions_[region].low);
    const std::uint32_t kind = regions_[region].kind & ~kHidden;
    if ((kind == kStaticShared || kind == kDynamicShared) && owners_[region].rank != worker.rank)
        finding.owner = static_cast<std::int32_t>(block_of(stamp_, owners_[region].rank * actors_a_block_));
}

void Sanitizer::begin_reach() { reach_->targets.assign(launch_.cluster_blocks(), {}); }

// An access to the shared memory of another block, by a thread or by a copy that it has started.
void Sanitizer::reach(Worker& worker, Thread& thread, const Actor& actor, int region, std::uintptr_t address, unsigned bytes, AccessKind kind, void* pc) {
    const unsigned rank = owners_[region].rank;
    const std::uint32_t first = rank * actors_a_block_;
    bool begun = false;
    for (std::uint32_t other = first; !begun && other < first + actors_a_block_; ++other) begun = actor.view->clock_of(other) > 0;
    const auto describe = [&](Finding& finding, const char* text) {
        finding.access = kind;
        finding.bytes = bytes;
        place(finding, worker, region, address);
        std::snprintf(finding.text, sizeof finding.text, "%s|%s", text, actor.what);
    };
    if (!begun) {
        if (Finding* finding = report(worker, &thread, kRace, pc)) describe(*finding, kTooEarly);
        return;
    }
    Reach::Access& last = reach_->targets[rank].last[actor.index];
    last.clock = actor.clock;
    if (last.pc == pc) return;
    last.pc = pc;
    last.finding = Finding{};
    begin_finding(last.finding, worker, &thread, kRace, pc, nullptr);
    describe(last.finding, kTooLate);
}

void Sanitizer::leave_reached(Worker& worker, Thread& thread) {
    worker.busy = true;
    Reach::Target& target = reach_->targets[worker.rank];
    if (views_[thread.actor] != target.latest) target.left.merge(*views_[thread.actor]);
    target.latest = views_[thread.actor];
    worker.busy = false;
}

void Sanitizer::end_cluster(Cluster&) {
    if (!reach_) return;
    for (const Reach::Target& target : reach_->targets)
        for (const auto& [actor, access] : target.last)
            if (target.left.clock_of(actor) < access.clock && is_news(finding_key(kRace, access.pc, nullptr))) findings.push_back(access.finding);
}

// ---- the cluster's barrier

void Sanitizer::cluster_barrier(Worker& worker) {
    worker.busy = true;
    Cluster& cluster = *worker.cluster;
    Worker* here = nullptr;
    Thread* stays = nullptr;
    for (Worker* block : cluster.blocks)
        for (Thread& thread : block->threads)
            if (!stays && !thread.finished && thread.came_to(cluster.phase) && thread.stays_at_cluster_barrier) here = block, stays = &thread;
    for (Worker* block : cluster.blocks) {
        if (!stays) break;
        const auto gone = [&](const Thread& thread) { return thread.finished && !thread.came_to(cluster.phase); };
        if (std::none_of(block->threads.begin(), block->threads.end(), gone)) continue;
        Finding* finding = report(*here, stays, kBarrierDivergence, stays->waiting_pc);
        if (!finding) break;
        std::memcpy(finding->other_block, &block->block_idx, sizeof finding->other_block);
        for (const Thread& thread : block->threads)
            if (gone(thread)) finding->threads[thread.index / 32] |= 1u << (thread.index % 32);
        std::snprintf(finding->text, sizeof finding->text, "cluster: exited");
        break;
    }
    channel_complete(worker, kClusterChannel);
}

void Sanitizer::misuse(Worker& worker, Thread& thread, FindingKind kind, const std::string& text, void* pc) {
    worker.busy = true;
    Finding* finding = report(worker, &thread, kind, pc);
    if (finding) std::snprintf(finding->text, sizeof finding->text, "says|%s", text.c_str());
    end_block_after(worker, finding);
    __builtin_unreachable();
}

}  // namespace lk
