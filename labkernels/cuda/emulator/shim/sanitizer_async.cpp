// The sanitizer's view of what runs beside the threads: asynchronous copies and warpgroup matrix products, and what waits for them.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <unordered_map>

#include "lk_async.h"
#include "machine.h"
#include "sanitizer.h"

namespace lk {
namespace {

const char* const kCopy = "asynchronous copy";
const char* const kProduct = "wgmma";

}  // namespace

struct Sanitizer::Async {
    struct Knowledge {              // what those who have arrived in this phase know, and those of the last one did
        View now;
        ViewPointer done;
        ViewPointer merged;         // threads often share a view: the last one that came into `now`
        ViewPointer before, after;  // and the last one that took up `done`, with what became of it

        void arrive(const ViewPointer& view) {
            if (view != merged) now.merge(*view);
            merged = view;
        }
        void complete() {
            done = std::make_shared<View>(std::move(now));
            now = View{};
            merged = before = after = nullptr;
        }
        void take(ViewPointer& mine) {
            if (mine != before) {
                auto view = std::make_shared<View>(*mine);
                view->merge(*done);
                before = mine;
                after = view;
            }
            mine = after;
        }
    };
    struct Arrivals { Knowledge view, fenced, proxied; };
    struct Channel {
        Arrivals near, far;         // from the block whose channel it is, and from others of its cluster
        std::uint32_t phase = 1;
        std::uint32_t agent = 0;    // 1 + index into agents; 0: no copy completes here
    };
    struct Agent { std::uint32_t issuer; const char* what; };
    struct Registers { std::uintptr_t low, high; std::uint32_t group; bool touched, input; };
    struct ThreadState {
        std::uint32_t stores_committed = 0, stores_issued = 0, stores_read = 0;
        std::uint32_t products_committed = 0, products_issued = 0, products_done = 0;
        bool fenced = false;
        std::vector<Registers> registers;
        void* store_pc = nullptr;
        void* product_pc = nullptr;
    };

    std::unordered_map<std::uintptr_t, Channel> channels;
    std::unordered_map<std::uint64_t, std::uint32_t> agent_of;
    std::vector<Agent> agents;
    std::vector<ThreadState> threads;
    std::vector<std::uint8_t> swizzles;     // of the cluster's shared memory, by block and 16 bytes: 1 + bytes / 32
    View view, proxied;             // of the agent that agent_access stands for
    Actor actor{};
    Thread* issuer = nullptr;

    std::uint8_t& swizzle(const Worker& owner, unsigned offset) { return swizzles[(owner.rank * kSharedWindow + offset) / 16]; }
    std::uint32_t agent(std::uint64_t key, std::uint32_t issuer, const char* what) {
        const auto [place, is_new] = agent_of.emplace(key, static_cast<std::uint32_t>(agents.size()));
        if (is_new) agents.push_back(Agent{issuer, what});
        agents[place->second].issuer = issuer;
        return place->second;
    }
};

Sanitizer::Sanitizer(Launch& launch, const Region* regions, std::uint64_t count, char* (*tls_anchor)())
    : launch_(launch), tls_anchor_(tls_anchor), regions_(regions, regions + count), actors_a_block_(launch.actors_a_block()) {}

Sanitizer::~Sanitizer() {
    for (Shadow& shadow : shadows_)
        if (shadow.cells) munmap(shadow.cells, shadow.bytes);
}

Sanitizer::Async& Sanitizer::async() {
    if (!async_) {
        async_.reset(new Async);
        begin_cluster_async();
    }
    return *async_;
}

void Sanitizer::begin_cluster_async() {
    async_->channels.clear();
    async_->agent_of.clear();
    async_->agents.clear();
    async_->threads.assign(views_.size(), {});
    async_->swizzles.assign(launch_.cluster_blocks() * std::size_t{kSharedWindow} / 16, 0);
}

const char* Sanitizer::agent_name(std::uint32_t index, std::uint32_t* issuer) const {
    if (index < views_.size() || !async_ || index - views_.size() >= async_->agents.size()) return "";
    const Async::Agent& agent = async_->agents[index - views_.size()];
    *issuer = agent.issuer;
    return agent.what;
}

void Sanitizer::report_in_words(Worker& worker, Thread& thread, FindingKind kind, const char* text, void* pc) {
    worker.busy = true;
    if (Finding* finding = report(worker, &thread, kind, pc)) std::snprintf(finding->text, sizeof finding->text, "%s", text);
    worker.busy = false;
}

// ---- arriving and waiting

void Sanitizer::channel_arrive(Worker& worker, Thread& thread, std::uintptr_t key, bool far) {
    worker.busy = true;
    Async::Channel& channel = async().channels[key];
    Async::Arrivals& arrivals = far ? channel.far : channel.near;
    arrivals.view.arrive(views_[thread.actor]);
    arrivals.view.now.set(thread.actor, clocks_[thread.actor]++);
    arrivals.fenced.arrive(fenced_[thread.actor]);
    arrivals.proxied.arrive(proxied_[thread.actor]);
    worker.busy = false;
}

void Sanitizer::arrives_again(Worker& worker, Thread& thread, void* pc) { report_in_words(worker, thread, kRace, "barrier: again", pc); }

void Sanitizer::channel_complete(Worker& worker, std::uintptr_t key) {
    worker.busy = true;
    Async::Channel& channel = async().channels[key];
    for (Async::Arrivals* arrivals : {&channel.near, &channel.far})
        for (Async::Knowledge* knowledge : {&arrivals->view, &arrivals->fenced, &arrivals->proxied}) knowledge->complete();
    worker.busy = false;
}

void Sanitizer::channel_acquire(Worker& worker, Thread& thread, std::uintptr_t key, bool cluster_scope) {
    worker.busy = true;
    Async::Channel& channel = async().channels[key];
    for (Async::Arrivals* arrivals : {&channel.near, &channel.far}) {
        if (!arrivals->view.done || (arrivals == &channel.far && !cluster_scope)) continue;
        arrivals->view.take(views_[thread.actor]);
        arrivals->fenced.take(fenced_[thread.actor]);
        arrivals->proxied.take(proxied_[thread.actor]);
    }
    worker.busy = false;
}

void Sanitizer::mbarrier_access(Worker& worker, Thread& thread, std::uint64_t* barrier, bool init, void* pc) {
    const auto where = resting(worker, reinterpret_cast<std::uintptr_t>(barrier));
    access(worker, thread, where, 8, init ? kWrite : kAtomic, false, false, pc);
    if (!init) return;
    Async::Channel& channel = async().channels[where];
    channel.near = channel.far = Async::Arrivals{};
}

void Sanitizer::phase_complete(Worker& worker, std::uint64_t* barrier) {
    const auto where = resting(worker, reinterpret_cast<std::uintptr_t>(barrier));
    Async::Channel& channel = async().channels[where];
    if (channel.agent) channel.near.view.now.set(views_.size() + channel.agent - 1, channel.phase);
    ++channel.phase;
    channel_complete(worker, where);
}

// ---- agents

void Sanitizer::begin_load(Worker& worker, Thread& thread, std::uint64_t* barrier) {
    worker.busy = true;
    Async& all = async();
    const auto where = resting(worker, reinterpret_cast<std::uintptr_t>(barrier));
    Async::Channel& channel = all.channels[where];
    channel.agent = 1 + all.agent(where, thread.actor, kCopy);
    all.view = *views_[thread.actor];
    all.proxied = *proxied_[thread.actor];
    channel.near.view.now.waited |= all.view.waited;   // a phase that this copy ends is over after the kernel before is
    all.view.set(thread.actor, clocks_[thread.actor]++);
    all.issuer = &thread;
    all.actor = Actor{static_cast<std::uint32_t>(views_.size()) + channel.agent - 1, channel.phase, &all.view, &all.proxied, kCopy};
    worker.busy = false;
}

void Sanitizer::begin_store(Worker& worker, Thread& thread, bool global_side) {
    worker.busy = true;
    Async& all = async();
    Async::ThreadState& state = all.threads[thread.actor];
    const std::uint32_t agent = all.agent(std::uint64_t{1} << 63 | thread.actor << 1 | global_side, thread.actor, kCopy);
    state.stores_issued = state.stores_committed + 1;
    state.store_pc = thread.last_pc;
    all.view = *views_[thread.actor];
    all.proxied = *proxied_[thread.actor];
    all.view.set(thread.actor, clocks_[thread.actor]++);
    all.issuer = &thread;
    all.actor = Actor{static_cast<std::uint32_t>(views_.size()) + agent, state.stores_issued, &all.view, &all.proxied, kCopy};
    worker.busy = false;
}

// A warpgroup's matrix product knows what all of its four warps know.
void Sanitizer::begin_wgmma(Worker& worker, Thread* warpgroup) {
    worker.busy = true;
    Async& all = async();
    const unsigned first = warpgroup->actor;
    const std::uint32_t agent = all.agent(std::uint64_t{1} << 62 | first, first, kProduct);
    for (unsigned warp = 0; warp < 4; ++warp) {
        const unsigned leader = first + 32 * warp;
        View view = *views_[leader];
        view.set(leader, clocks_[leader]++);
        if (warp == 0) {
            all.view = view;
            all.proxied = *proxied_[leader];
            continue;
        }
        for (std::size_t i = 0; i < all.view.clocks.size(); ++i) all.view.clocks[i] = std::min(all.view.clocks[i], view.clock_of(i));
        for (std::size_t i = 0; i < all.proxied.clocks.size(); ++i)
            all.proxied.clocks[i] = std::min(all.proxied.clocks[i], proxied_[leader]->clock_of(i));
    }
    all.issuer = warpgroup;
    all.actor = Actor{static_cast<std::uint32_t>(views_.size()) + agent, all.threads[first].products_committed + 1, &all.view,
                      &all.proxied, kProduct};
    worker.busy = false;
}

void Sanitizer::agent_access(Worker& worker, const void* address, unsigned bytes, AccessKind kind, void* pc) {
    record(worker, *async_->issuer, async_->actor, reinterpret_cast<std::uintptr_t>(address), bytes, kind, false, false, pc);
}

void Sanitizer::proxy_fence(Worker& worker, Thread& thread) {
    worker.busy = true;
    proxies_used_ = true;
    auto view = std::make_shared<View>(*proxied_[thread.actor]);
    view->set(thread.actor, clocks_[thread.actor]++);
    proxied_[thread.actor] = view;
    worker.busy = false;
}

void Sanitizer::commit_stores(Thread& thread) { ++async().threads[thread.actor].stores_committed; }

void Sanitizer::wait_stores(Worker& worker, Thread& thread, unsigned pending, bool read_only) {
    worker.busy = true;
    Async& all = async();
    Async::ThreadState& state = all.threads[thread.actor];
    const std::uint32_t done = state.stores_committed > pending ? state.stores_committed - pending : 0;
    state.stores_read = std::max(state.stores_read, done);
    auto view = std::make_shared<View>(*views_[thread.actor]);
    for (unsigned global_side = 0; global_side < (read_only ? 1u : 2u); ++global_side)
        view->set(views_.size() + all.agent(std::uint64_t{1} << 63 | thread.actor << 1 | global_side, thread.actor, kCopy), done);
    views_[thread.actor] = view;
    worker.busy = false;
}

// ---- swizzles: what a copy wrote with one, a matrix descriptor must read with the same

void Sanitizer::remember_swizzle(const void* address, unsigned swizzle_bytes) {
    unsigned offset;
    if (const Worker* owner = shared_owner(address, &offset)) async_->swizzle(*owner, offset) = static_cast<std::uint8_t>(1 + swizzle_bytes / 32);
}

void Sanitizer::forget_swizzle(std::uintptr_t address, unsigned bytes) {
    unsigned offset;
    const Worker* owner = shared_owner(reinterpret_cast<void*>(address), &offset);
    if (!owner) return;
    for (unsigned byte = offset & ~15u; byte < offset + bytes && byte < kSharedWindow; byte += 16) async_->swizzle(*owner, byte) = 0;
}

void Sanitizer::check_swizzle(Worker& worker, const void* address, unsigned swizzle_bytes, void* pc) {
    unsigned offset;
    const Worker* owner = shared_owner(address, &offset);
    const std::uint8_t written = owner ? async_->swizzle(*owner, offset) : 0;
    if (!written || written == 1 + swizzle_bytes / 32) return;
    worker.busy = true;
    if (Finding* finding = report(worker, async_->issuer, kMisaligned, pc)) {
        const auto where = resting(worker, reinterpret_cast<std::uintptr_t>(address));
        place(*finding, worker, region_of(where, where + 1), where);
        finding->bytes = 16;
        std::snprintf(finding->text, sizeof finding->text, "swizzle|%u|%u", (written - 1) * 32, swizzle_bytes);
    }
    worker.busy = false;
}

// ---- wgmma: the registers that it reads and writes while its thread goes on

void Sanitizer::wgmma_registers(Worker& worker, Thread& thread, const void* d, unsigned d_bytes, const void* a, unsigned a_bytes, void* pc) {
    worker.busy = true;
    Async::ThreadState& state = async().threads[thread.actor];
    bool touched = !state.fenced;
    const auto add = [&](const void* first, unsigned bytes, bool input) {
        const auto low = reinterpret_cast<std::uintptr_t>(first);
        auto known = std::find_if(state.registers.begin(), state.registers.end(), [&](const auto& r) { return r.low == low && r.high == low + bytes; });
        if (known == state.registers.end()) known = state.registers.insert(known, {low, low + bytes, 0, false, input});
        touched = touched || known->touched;
        known->group = state.products_committed + 1;
    };
    add(d, d_bytes, false);
    if (a) add(a, a_bytes, true);
    state.products_issued = state.products_committed + 1;
    state.product_pc = pc;
    worker.busy = false;
    if (touched) report_in_words(worker, thread, kRace, "wgmma: unfenced", pc);
}

void Sanitizer::registers_access(Worker& worker, Thread& thread, std::uintptr_t address, unsigned bytes, AccessKind kind, void* pc) {
    Async::ThreadState& state = async_->threads[thread.actor];
    for (Async::Registers& registers : state.registers) {
        if (address >= registers.high || address + bytes <= registers.low || (registers.input && kind == kRead)) continue;
        if (registers.group <= state.products_done) {
            registers.touched = true;
            continue;
        }
        thread.last_pc = pc;
        const bool committed = registers.group <= state.products_committed;
        const char* text = committed ? (kind == kRead ? "wgmma: read" : "wgmma: write") : "wgmma: uncommitted";
        report_in_words(worker, thread, kRace, text, pc);
    }
}

void Sanitizer::wgmma_fence(Thread& thread) {
    Async::ThreadState& state = async().threads[thread.actor];
    state.fenced = true;
    for (Async::Registers& registers : state.registers) registers.touched = false;
}

void Sanitizer::commit_wgmma(Thread& thread) { ++async().threads[thread.actor].products_committed; }

void Sanitizer::wait_wgmma(Worker& worker, Thread& thread, unsigned pending) {
    worker.busy = true;
    Async& all = async();
    Async::ThreadState& state = all.threads[thread.actor];
    const std::uint32_t done = state.products_committed > pending ? state.products_committed - pending : 0;
    state.products_done = std::max(state.products_done, done);
    const unsigned first = thread.actor - thread.index % 128;
    auto view = std::make_shared<View>(*views_[thread.actor]);
    view->set(views_.size() + all.agent(std::uint64_t{1} << 62 | first, first, kProduct), done);
    views_[thread.actor] = view;
    worker.busy = false;
}

// A thread leaves: what it has started must not outlive the block's shared memory.
void Sanitizer::agents_left(Worker& worker, Thread& thread) {
    const Async::ThreadState& state = async_->threads[thread.actor];
    if (state.stores_issued > state.stores_read) report_in_words(worker, thread, kRace, "copy: left", state.store_pc);
    if (state.products_issued > state.products_done && thread.index % 128 == 0)
        report_in_words(worker, thread, kRace, "wgmma: left", state.product_pc);
}

}  // namespace lk
