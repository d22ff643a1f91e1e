// The sanitizer's shadow of memory: each access against the regions that a kernel may touch and against the accesses before it.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "machine.h"
#include "sanitizer.h"

namespace lk {
namespace {

constexpr std::size_t kMostSuspicions = 4096;

std::uint8_t byte_mask(std::uintptr_t address, unsigned bytes, std::uintptr_t cell) {
    std::uint8_t mask = 0;
    for (unsigned i = 0; i < 4; ++i)
        if (cell + i >= address && cell + i < address + bytes) mask |= 1u << i;
    return mask;
}

// The resting place of an address that may have strayed from its array.
std::uintptr_t near_resting(const Worker& worker, std::uintptr_t address) {
    constexpr std::uintptr_t kStray = 64 * 1024;
    const std::uintptr_t from = reinterpret_cast<std::uintptr_t>(worker.static_shared);
    if (!worker.parked_shared || address + kStray - from >= worker.static_shared_bytes + 2 * kStray) return address;
    return reinterpret_cast<std::uintptr_t>(worker.parked_shared) + (address - from);
}

bool is_shared(std::uint32_t kind) { return kind == kStaticShared || kind == kDynamicShared; }

}  // namespace

int Sanitizer::region_of(std::uintptr_t low, std::uintptr_t high) {
    const Region& last = regions_[last_region_];
    if (low >= last.low && high <= last.high) return last_region_;
    for (std::size_t i = 0; i < regions_.size(); ++i)
        if (low >= regions_[i].low && high <= regions_[i].high) return last_region_ = static_cast<int>(i);
    return -1;
}

int Sanitizer::nearest_region(std::uintptr_t address) const {
    int nearest = -1;
    std::uint64_t best = 1u << 20;              // farther than 1 MiB from everything: a wild pointer
    for (std::size_t i = 0; i < regions_.size(); ++i) {
        if (regions_[i].low == regions_[i].high && regions_[i].kind == kDynamicShared && launch_.shared_bytes == 0 &&
            address < regions_[i].low) continue;
        const std::uint64_t distance = address < regions_[i].low ? regions_[i].low - address
                                       : address >= regions_[i].high ? address - regions_[i].high + 1 : 0;
        if (distance < best) best = distance, nearest = static_cast<int>(i);
    }
    return nearest;
}

Sanitizer::Cell* Sanitizer::cells_of(int region) {
    Shadow& shadow = shadows_[region];
    if (!shadow.cells) {
        const std::size_t words = (regions_[region].high - regions_[region].low) / 4 + 2;
        shadow.bytes = words * sizeof(Cell);
        shadow.cells = static_cast<Cell*>(mmap(nullptr, shadow.bytes, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    return shadow.cells;
}

bool Sanitizer::writer(int region, std::uint64_t offset, std::uint32_t* block, std::uint32_t* thread) const {
    const Cell* cells = shadows_[region].cells;
    if (!cells) return false;
    const std::uint64_t address = regions_[region].low + offset;
    const Cell& cell = cells[address / 4 - regions_[region].low / 4];
    const Access& last = cell.writes[address % 4].stamp ? cell.writes[address % 4] : cell.atomics;
    if (!last.stamp) return false;
    std::uint32_t actor = last.thread;
    agent_name(actor, &actor);
    *block = static_cast<std::uint32_t>(block_of(last.stamp, actor));
    *thread = thread_of(actor);
    return true;
}

bool Sanitizer::ordered(const Access& earlier, const Actor& actor) const {
    const View& view = *actor.view;
    if (earlier.stamp == stamp_) return view.clock_of(earlier.thread) >= earlier.clock;
    for (const auto& [stamp, foreign] : view.foreign)
        if (stamp == earlier.stamp && foreign->clock_of(earlier.thread) >= earlier.clock) return true;
    return false;
}

// Whether an agent sees an ordinary write: a proxy fence of the writer must lie between, beside all that orders the two.
bool Sanitizer::visible(const Access& earlier, const Actor& actor) const {
    return !actor.proxied || earlier.stamp != stamp_ || earlier.thread >= views_.size() ||
           actor.proxied->clock_of(earlier.thread) >= earlier.clock;
}

bool Sanitizer::conflicts(const Access& earlier, std::uint8_t mask, const Actor& actor, bool atomic, bool shared, bool was_written) const {
    if (!earlier.stamp || !(earlier.mask & mask)) return false;
    if (earlier.stamp == stamp_ && earlier.thread == actor.index && (!actor.proxied || earlier.clock == actor.clock)) return false;
    if (shared && earlier.stamp != stamp_) return false;        // another block's shared memory lay here
    if (earlier.atomic && atomic) return false;
    return !ordered(earlier, actor) || (was_written && !visible(earlier, actor));
}

void Sanitizer::access(Worker& worker, Thread& thread, std::uintptr_t address, unsigned bytes, AccessKind kind,
                       bool is_volatile, bool check_alignment, void* pc) {
    const Stack* stack = thread.stack;
    if (address >= reinterpret_cast<std::uintptr_t>(stack->guard) && address < reinterpret_cast<std::uintptr_t>(stack->top))
        return async_ ? registers_access(worker, thread, address, bytes, kind, pc) : void();      // the thread's own local memory
    thread.last_pc = pc;
    if (is_volatile) give_way(worker);
    const Actor actor{thread.actor, clocks_[thread.actor], views_[thread.actor].get()};
    record(worker, thread, actor, address, bytes, kind, is_volatile, check_alignment, pc);
}

// One access by `thread`, or by an agent that it has sent.
void Sanitizer::record(Worker& worker, Thread& thread, const Actor& given, std::uintptr_t address, unsigned bytes, AccessKind kind,
                       bool is_volatile, bool check_alignment, void* pc) {
    Actor actor = given;
    address = resting(worker, address);
    worker.busy = true;
    const int index = region_of(address, address + bytes);
    if (index < 0) {
        if (kind == kRead && text_of(reinterpret_cast<void*>(address)).low) {      // constants of a loaded library
            worker.busy = false;
            return;
        }
        Finding* finding = report(worker, &thread, kOutOfBounds, pc);
        if (finding) {
            finding->access = kind;
            finding->bytes = bytes;
            address = near_resting(worker, address);
            place(*finding, worker, nearest_region(address), address);
        }
        end_block_after(worker, finding);
    }
    const Region& region = regions_[index];
    if (region.kind & kHidden) {
        worker.busy = false;
        return;
    }
    if (check_alignment && address % bytes) misaligned(worker, thread, address, bytes, kind, pc);
    if (region.kind & kUnsettled && !actor.view->waited) {
        if (Finding* finding = report(worker, &thread, kRace, pc)) {
            finding->access = kind;
            finding->bytes = bytes;
            std::snprintf(finding->text, sizeof finding->text, "kernel before|%s", actor.what);
            place(*finding, worker, index, address);
        }
    }
    const bool shared = is_shared(region.kind);
    if (shared && owners_[index].rank != worker.rank) reach(worker, thread, actor, index, address, bytes, kind, pc);
    const bool atomic = kind == kAtomic || (is_volatile && !shared);
    if (is_volatile && !shared) acquire_release(thread, address), actor.view = views_[thread.actor].get();
    if (async_ && shared && kind != kRead) forget_swizzle(address, bytes);
    Cell* cells = cells_of(index);
    const std::uintptr_t first = region.low & ~std::uintptr_t{3};
    const bool writes = kind != kRead;
    const Access mine{stamp_, actor.clock, static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(pc) -
                                                                                launch_.kernel_text.low),
                      static_cast<std::uint16_t>(actor.index), 0, atomic};
    const auto same_warp = [this](std::uint32_t a, std::uint32_t b) {      // agents stand each for itself
        return a < views_.size() && b < views_.size() ? a / 32 == b / 32 : a == b;
    };
    for (std::uintptr_t word = address & ~std::uintptr_t{3}; word < address + bytes; word += 4) {
        Cell& cell = cells[(word - first) / 4];
        const std::uint8_t mask = byte_mask(address, bytes, word);
        if (shared) {
            if (cell.written_stamp != stamp_) cell.written_stamp = stamp_, cell.written_mask = 0;
            if (kind != kWrite && (cell.written_mask & mask) != mask) {
                if (Finding* finding = report(worker, &thread, kUninitialized, pc)) {
                    finding->access = kind;
                    finding->bytes = bytes;
                    place(*finding, worker, index, address);
                }
            }
            cell.written_mask |= mask;
        }
        const auto judge = [&](const Access& earlier, std::uint8_t bytes_mask, AccessKind earlier_kind) {
            if (conflicts(earlier, bytes_mask, actor, atomic, shared, earlier_kind != kRead))
                race(worker, thread, actor, index, address, bytes, kind, earlier, earlier_kind, pc);
        };
        for (unsigned i = 0; i < 4; ++i) {
            const bool same = i && (mask >> (i - 1) & 1) && !std::memcmp(&cell.writes[i], &cell.writes[i - 1], sizeof(Access));
            if (mask >> i & 1 && !same) judge(cell.writes[i], 0xf, cell.writes[i].atomic ? kAtomic : kWrite);
        }
        judge(cell.atomics, mask, kAtomic);
        if (kind == kAtomic)                    // its own plain read before was the first guess of a compare-and-swap loop
            for (Access& read : cell.reads)
                if (read.stamp == stamp_ && read.thread == actor.index) read.atomic = true;
        if (writes) {
            for (const Access& read : cell.reads) judge(read, mask, kRead);
        }
        Access entry = mine;
        entry.mask = mask;
        if (kind == kAtomic) {
            cell.atomics = entry;
        } else if (writes) {
            for (unsigned i = 0; i < 4; ++i)
                if (mask >> i & 1) cell.writes[i] = entry;
        } else {
            if (cell.reads[0].stamp != entry.stamp || !same_warp(cell.reads[0].thread, entry.thread))
                cell.reads[1] = cell.reads[0];
            cell.reads[0] = entry;
        }
    }
    worker.busy = false;
}

void Sanitizer::race(Worker& worker, Thread& thread, const Actor& actor, int region, std::uintptr_t address, unsigned bytes, AccessKind kind,
                     const Access& earlier, AccessKind earlier_kind, void* pc) {
    void* other_pc = reinterpret_cast<void*>(launch_.kernel_text.low + earlier.pc);
    // A plain read of what others update atomically is a race, unless it only is the first guess of a compare-and-swap loop: the
    // reader's own atomic at that address, if one comes, clears it of suspicion.
    Suspicion suspicion{};
    Finding* finding = nullptr;
    const bool suspected = (kind == kRead && earlier_kind == kAtomic) || (kind == kAtomic && earlier_kind == kRead);
    if (suspected) {
        const std::uint64_t key = finding_key(kRace, pc, other_pc);
        if (seen_.count(key) || suspicions_.size() >= kMostSuspicions) return;
        suspicion.stamp = kind == kRead ? stamp_ : earlier.stamp;
        suspicion.thread = kind == kRead ? thread.actor : earlier.thread;
        suspicion.address = address;
        suspicion.key = key;
        finding = &suspicion.finding;
        begin_finding(*finding, worker, &thread, kRace, pc, other_pc);
    } else {
        finding = report(worker, &thread, kRace, pc, other_pc);
    }
    if (!finding) return;
    finding->access = kind;
    finding->other_access = earlier_kind;
    std::uint32_t culprit = earlier.thread;
    const char* other = agent_name(earlier.thread, &culprit);
    finding->other_thread = thread_of(culprit);
    const bool blocks = is_shared(regions_[region].kind) && culprit / actors_a_block_ != worker.rank;
    const char* hint = *actor.what && ordered(earlier, actor) ? "proxy" : blocks ? "blocks" : "";
    if (*actor.what || *other || *hint) std::snprintf(finding->text, sizeof finding->text, "%s|%s|%s", actor.what, other, hint);
    const std::uint64_t block = block_of(earlier.stamp, culprit);
    const dim3& grid = launch_.grid;
    finding->other_block[0] = static_cast<std::uint32_t>(block % grid.x);
    finding->other_block[1] = static_cast<std::uint32_t>(block / grid.x % grid.y);
    finding->other_block[2] = static_cast<std::uint32_t>(block / grid.x / grid.y);
    finding->bytes = bytes;
    place(*finding, worker, region, address);
    if (suspected) suspicions_.push_back(suspicion);
}

void Sanitizer::misaligned(Worker& worker, Thread& thread, std::uintptr_t address, unsigned alignment, AccessKind kind,
                           void* pc) {
    worker.busy = true;
    Finding* finding = report(worker, &thread, kMisaligned, pc);
    if (finding) {
        finding->access = kind;
        finding->bytes = alignment;
        address = near_resting(worker, address);
        place(*finding, worker, nearest_region(address), address);
    }
    end_block_after(worker, finding);
}

void Sanitizer::array_index(Worker& worker, Thread& thread, const char* array_type, std::int64_t index, void* pc) {
    worker.busy = true;
    Finding* finding = report(worker, &thread, kOutOfBounds, pc);
    if (finding) {
        finding->offset = index;
        std::snprintf(finding->text, sizeof finding->text, "%s", array_type);
    }
    end_block_after(worker, finding);
}

void Sanitizer::atomic(Worker& worker, Thread& thread, void* address, unsigned bytes, void* pc) {
    const auto where = resting(worker, reinterpret_cast<std::uintptr_t>(address));
    access(worker, thread, where, bytes, kAtomic, false, bytes <= 8, pc);
    worker.busy = true;
    acquire_release(thread, where);
    suspicions_.erase(std::remove_if(suspicions_.begin(), suspicions_.end(), [&](const Suspicion& suspicion) {
        return suspicion.stamp == stamp_ && suspicion.thread == thread.actor && suspicion.address == where;
    }), suspicions_.end());
    worker.busy = false;
}

}  // namespace lk
