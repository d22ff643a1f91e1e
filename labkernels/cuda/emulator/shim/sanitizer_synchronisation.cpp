// The sanitizer's view of who has waited for whom: barriers, fences, atomics and warp-wide operations, and where threads come to none.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "machine.h"
#include "sanitizer.h"

namespace lk {

void View::set(std::size_t thread, std::uint32_t clock) {
    if (clocks.size() <= thread) clocks.resize(thread + 1);
    clocks[thread] = std::max(clocks[thread], clock);
}

void View::merge(const View& other) {
    if (clocks.size() < other.clocks.size()) clocks.resize(other.clocks.size());
    for (std::size_t i = 0; i < other.clocks.size(); ++i) clocks[i] = std::max(clocks[i], other.clocks[i]);
    waited |= other.waited;
    for (const auto& entry : other.foreign)
        if (std::find(foreign.begin(), foreign.end(), entry) == foreign.end()) foreign.push_back(entry);
}

// The views of a group in one; `own`: with what each has done itself.
ViewPointer Sanitizer::join(const std::vector<const Thread*>& group, const std::vector<ViewPointer>& views, bool own) const {
    auto joined = std::make_shared<View>();
    joined->clocks.assign(clocks_.size(), 0);
    std::vector<const View*> seen;
    for (const Thread* thread : group) {
        const View* view = views[thread->actor].get();
        if (std::find(seen.begin(), seen.end(), view) != seen.end()) continue;
        seen.push_back(view);
        joined->merge(*view);
    }
    if (own)
        for (const Thread* thread : group) joined->clocks[thread->actor] = clocks_[thread->actor];
    return joined;
}

void Sanitizer::synchronise(const std::vector<const Thread*>& group) {
    const ViewPointer view = join(group, views_, true), fenced = join(group, fenced_, false);
    const ViewPointer proxied = proxies_used_ ? join(group, proxied_, false) : nullptr;
    for (const Thread* thread : group) {
        views_[thread->actor] = view;
        fenced_[thread->actor] = fenced;
        if (proxied) proxied_[thread->actor] = proxied;
        ++clocks_[thread->actor];
    }
}

void Sanitizer::block_barrier(Worker& worker, Thread* running) {
    worker.busy = true;
    std::vector<const Thread*> group;
    void* pc = nullptr;
    void* other_pc = nullptr;
    for (Thread& thread : worker.threads) {
        if (thread.finished) continue;
        group.push_back(&thread);
        if (!pc) pc = thread.waiting_pc;
        else if (thread.waiting_pc != pc) other_pc = thread.waiting_pc;
    }
    if (group.size() < worker.threads.size()) {
        if (Finding* finding = report(worker, const_cast<Thread*>(group[0]), kBarrierDivergence, pc)) {
            for (Thread& thread : worker.threads)
                if (thread.finished) set_bit(finding, thread.index);
            std::snprintf(finding->text, sizeof finding->text, "exited");
        }
    } else if (other_pc) {                      // two places: Python drops the finding if they are one source line
        if (Finding* finding = report(worker, const_cast<Thread*>(group[0]), kBarrierDivergence, pc, other_pc)) {
            for (Thread& thread : worker.threads)
                if (thread.waiting_pc != pc) {
                    set_bit(finding, thread.index);
                    if (finding->other_thread == kNobody) finding->other_thread = thread.index;
                }
            std::snprintf(finding->text, sizeof finding->text, "elsewhere");
        }
    }
    (void)running;
    synchronise(group);
    worker.busy = false;
}

void Sanitizer::warp_barrier(Worker& worker, unsigned warp, std::uint32_t members) {
    worker.busy = true;
    std::vector<const Thread*> group;
    for (std::uint32_t rest = members; rest; rest &= rest - 1)
        group.push_back(&worker.threads[warp * 32 + static_cast<unsigned>(__builtin_ctz(rest))]);
    synchronise(group);
    worker.busy = false;
}

void Sanitizer::fence(Worker& worker, Thread& thread) {
    worker.busy = true;
    auto view = std::make_shared<View>(*views_[thread.actor]);
    view->clocks[thread.actor] = clocks_[thread.actor]++;
    fenced_[thread.actor] = view;
    worker.busy = false;
}

// What the kernel before has written is there, for this thread and for whoever synchronises with it.
void Sanitizer::kernel_before_ended(Worker& worker, Thread& thread) {
    worker.busy = true;
    auto view = std::make_shared<View>(*views_[thread.actor]);
    view->waited = true;
    views_[thread.actor] = view;
    worker.busy = false;
}

// An atomic at `address`: take up what others published there, publish what this thread has fenced.
void Sanitizer::acquire_release(Thread& thread, std::uintptr_t address) {
    auto& published = published_[address];
    if (!published.empty()) {
        auto view = std::make_shared<View>(*views_[thread.actor]);
        for (const auto& entry : published) {
            if (entry.first == stamp_) {
                view->merge(*entry.second);
            } else if (std::find(view->foreign.begin(), view->foreign.end(), entry) == view->foreign.end()) {
                view->foreign.push_back(entry);
                view->waited |= entry.second->waited;
            }
        }
        views_[thread.actor] = view;
    }
    const ViewPointer& mine = fenced_[thread.actor];
    const std::pair<std::uint32_t, ViewPointer> own{stamp_, mine};
    const auto add = [&](const std::pair<std::uint32_t, ViewPointer>& entry) {
        if (std::find(published.begin(), published.end(), entry) == published.end()) published.push_back(entry);
    };
    if (std::any_of(mine->clocks.begin(), mine->clocks.end(), [](std::uint32_t clock) { return clock != 0; })) add(own);
    for (const auto& entry : mine->foreign) add(entry);
}

void Sanitizer::warp_operation(Worker& worker, Thread& thread, std::uint32_t mask, const char* what, void* pc) {
    worker.busy = true;
    const Warp& warp = worker.warps[thread.warp];
    const std::uint32_t absent = mask & ~warp.alive;
    if (!(mask >> thread.lane & 1)) {
        Finding* finding = report(worker, &thread, kBarrierDivergence, pc);
        if (finding) {
            set_bit(finding, thread.index);
            std::snprintf(finding->text, sizeof finding->text, "%s: not in mask", what);
        }
        end_block_after(worker, finding);
    }
    if (absent) {
        if (Finding* finding = report(worker, &thread, kBarrierDivergence, pc)) {
            finding->threads[thread.warp] = absent;
            std::snprintf(finding->text, sizeof finding->text, "%s: absent", what);
        }
    }
    worker.busy = false;
}

void Sanitizer::undefined_lane(Worker& worker, Thread& thread, const char* what, unsigned source) {
    if (Finding* finding = report(worker, &thread, kUninitialized, thread.last_pc)) {
        finding->offset = source;
        std::snprintf(finding->text, sizeof finding->text, "%s: undefined lane", what);
    }
}

void Sanitizer::thread_exit(Worker& worker, Thread& thread) {
    if (async_) agents_left(worker, thread);
    if (reach_) leave_reached(worker, thread);
    const Warp& warp = worker.warps[thread.warp];
    for (std::uint32_t rest = warp.collecting; rest; rest &= rest - 1) {
        Thread& other = worker.threads[thread.warp * 32 + static_cast<unsigned>(__builtin_ctz(rest))];
        if (!(other.mask >> thread.lane & 1)) continue;
        worker.busy = true;
        Finding* finding = report(worker, &other, kBarrierDivergence, other.waiting_pc);
        if (finding) {
            std::snprintf(finding->text, sizeof finding->text, "%s: absent", other.waiting_for);
        } else {                                // known: then this is one more lane that is absent there
            const auto pc = reinterpret_cast<std::uint64_t>(other.waiting_pc);
            for (Finding& known : findings)
                if (known.kind == kBarrierDivergence && known.pc == pc && known.thread / 32 == thread.warp &&
                    !std::memcmp(known.block, &worker.block_idx, sizeof known.block))
                    finding = &known;
        }
        if (finding) set_bit(finding, thread.index);
        worker.busy = false;
        return;
    }
}

}  // namespace lk
