// The sanitizer from launch to findings. sanitizer_memory.cpp judges accesses, sanitizer_synchronisation.cpp knows what is ordered.
#include "sanitizer.h"

#include <cstring>

#include "machine.h"

namespace lk {
namespace {

constexpr std::size_t kMostFindings = 64;
constexpr unsigned kMostAbandonedBlocks = 8;

}  // namespace

std::uint64_t finding_key(FindingKind kind, const void* pc, const void* other_pc) {
    return reinterpret_cast<std::uint64_t>(pc) * 0x9E3779B97F4A7C15ull ^
           reinterpret_cast<std::uint64_t>(other_pc) * 0xC2B2AE3D27D4EB4Full ^ (std::uint64_t(kind) << 60);
}

void begin_finding(Finding& finding, const Worker& worker, const Thread* thread, FindingKind kind, void* pc, void* other_pc) {
    finding.kind = kind;
    finding.block[0] = worker.block_idx.x;
    finding.block[1] = worker.block_idx.y;
    finding.block[2] = worker.block_idx.z;
    finding.thread = thread ? thread->index : kNobody;
    finding.other_thread = kNobody;
    finding.pc = reinterpret_cast<std::uint64_t>(pc);
    finding.other_pc = reinterpret_cast<std::uint64_t>(other_pc);
}

void Sanitizer::begin_launch(Cluster& cluster) {
    const auto anchor = reinterpret_cast<std::uint64_t>(tls_anchor_());
    for (Region& region : regions_) {
        if ((region.kind & ~kHidden) != kStaticShared) continue;
        region.low += anchor;
        region.high += anchor;
    }
    const auto low = reinterpret_cast<std::uint64_t>(cluster.blocks[0]->dynamic_shared);
    regions_.push_back(Region{low, low + launch_.shared_bytes, kDynamicShared, 4});
    for (std::size_t i = 0; i < regions_.size(); ++i) owners_.push_back({static_cast<int>(i), 0});
    if (cluster.blocks.size() > 1) add_regions(cluster);
    shadows_.resize(regions_.size());
}

void Sanitizer::begin_cluster(std::uint64_t number) {
    stamp_ = static_cast<std::uint32_t>(number) + 1;
    const std::size_t count = launch_.cluster_blocks() * actors_a_block_;
    clocks_.assign(count, 1);
    auto nothing = std::make_shared<View>();
    nothing->clocks.assign(count, 0);
    views_.assign(count, nothing);
    fenced_.assign(count, nothing);
    proxied_.assign(count, nothing);
    proxies_used_ = false;
    if (async_) begin_cluster_async();
    if (reach_) begin_reach();
}

// What is still suspected when all is done is a race.
void Sanitizer::end_launch() {
    for (const Suspicion& suspicion : suspicions_)
        if (is_news(suspicion.key)) findings.push_back(suspicion.finding);
    suspicions_.clear();
}

void Sanitizer::stalled(Worker& worker) {
    worker.busy = true;
    Thread* first = nullptr;
    Thread* second = nullptr;
    const Worker* elsewhere = nullptr;
    for (Worker* block : worker.cluster->blocks)
        for (Thread& thread : block->threads) {
            if (!thread.waiting_for) continue;
            if (!first) first = &thread;
            else if (!second && thread.waiting_pc != first->waiting_pc) second = &thread, elsewhere = block;
        }
    if (Finding* finding = report(worker, first, kDeadlocked, first->waiting_pc, second ? second->waiting_pc : nullptr)) {
        for (Thread& thread : worker.threads)
            if (thread.waiting_for && thread.waiting_pc == first->waiting_pc) set_bit(finding, thread.index);
        if (second) {
            finding->other_thread = second->index;
            std::memcpy(finding->other_block, &elsewhere->block_idx, sizeof finding->other_block);
        }
        std::snprintf(finding->text, sizeof finding->text, "%s|%s", first->waiting_for, second ? second->waiting_for : "");
    }
    if (++fatal_ >= kMostAbandonedBlocks) launch_.stop = true;
    worker.busy = false;
}

// `pc` may lie in the emulator's own code: the last known place in the user's goes along.
void Sanitizer::timeout(Worker& worker, Thread& thread, void* pc) { report(worker, &thread, kTimedOut, pc, thread.last_pc); }

void Sanitizer::crash(Worker& worker, Thread& thread, const std::string& text, void* address, void* pc) {
    if (Finding* finding = report(worker, &thread, kCrash, pc)) {
        finding->address = reinterpret_cast<std::uint64_t>(address);
        std::snprintf(finding->text, sizeof finding->text, "%s", text.c_str());
    }
    if (++fatal_ >= kMostAbandonedBlocks) launch_.stop = true;
}

// ---- findings -------------------------------------------------------------------------------------------------------

bool Sanitizer::is_news(std::uint64_t key) { return findings.size() < kMostFindings && seen_.insert(key).second; }

// A new finding to be filled in, or null where the same one (kind and places) is known already.
Finding* Sanitizer::report(Worker& worker, Thread* thread, FindingKind kind, void* pc, void* other_pc) {
    if (!is_news(finding_key(kind, pc, other_pc))) return nullptr;
    findings.emplace_back();
    begin_finding(findings.back(), worker, thread, kind, pc, other_pc);
    return &findings.back();
}

// The access cannot be let through: the rest of the block would act on garbage.
void Sanitizer::end_block_after(Worker& worker, const Finding*) {
    if (++fatal_ >= kMostAbandonedBlocks) launch_.stop = true;
    leave_block(worker);
}

}  // namespace lk
