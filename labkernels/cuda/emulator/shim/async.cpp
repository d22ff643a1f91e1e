// Named barriers, mbarriers and bulk copies (TMA): what they do. What the sanitizer makes of them is in sanitizer_async.cpp.
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#include "lk_async.h"
#include "machine.h"
#include "sanitizer.h"

namespace lk {
namespace {

const char* const kNamedBarrier = "named_barrier_sync";
const char* const kMbarrier = "mbarrier_wait";

[[noreturn]] void refuse(void* pc, const std::string& text) {
    this_thread().last_pc = pc;
    fail(text.c_str());
}

unsigned static_window(const Worker& worker) {
    const unsigned bytes = static_cast<unsigned>(worker.static_shared_bytes + 2 * kSwizzlePeriod - 1) / kSwizzlePeriod * kSwizzlePeriod;
    return kSharedWindow - bytes + static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(worker.static_shared) % kSwizzlePeriod);
}

void* resting_place(const void* address) {
    return reinterpret_cast<void*>(resting(this_worker(), reinterpret_cast<std::uintptr_t>(address)));
}

// ---- mbarriers: 20 bits of arrivals pending, 20 bits of arrivals a phase, 23 bits of bytes pending (signed), the phase's parity

struct Mbarrier {
    unsigned pending, count;
    int bytes;
    unsigned parity;

    static Mbarrier load(const std::uint64_t* word) {
        const std::uint64_t bits = *word;
        Mbarrier state;
        state.pending = bits & 0xfffff;
        state.count = bits >> 20 & 0xfffff;
        state.bytes = static_cast<int>(static_cast<std::int64_t>(bits << 1) >> 41);
        state.parity = static_cast<unsigned>(bits >> 63);
        return state;
    }
    void store(std::uint64_t* word) const {
        *word = std::uint64_t(pending) | std::uint64_t(count) << 20 | (std::uint64_t(bytes) & 0x7fffff) << 40 | std::uint64_t(parity) << 63;
    }
};

// The state of an mbarrier of this block or, `remote`, of another one of its cluster.
Mbarrier load_checked(const std::uint64_t* barrier, void* pc, const char* what, bool remote = false) {
    if (!remote && shared_offset(barrier) == ~0u) refuse(pc, std::string(what) + ": the mbarrier is not in shared memory");
    if (reinterpret_cast<std::uintptr_t>(barrier) % 8) refuse(pc, std::string(what) + ": an mbarrier lies on a multiple of 8 bytes");
    Worker& worker = this_worker();
    if (worker.sanitizer) worker.sanitizer->mbarrier_access(worker, this_thread(), const_cast<std::uint64_t*>(barrier), false, pc);
    const Mbarrier state = Mbarrier::load(barrier);
    if (!state.count && worker.sanitizer && !worker.sanitizer->findings.empty()) leave_block(worker);      // it has said why
    if (!state.count) refuse(pc, std::string(what) + ": the mbarrier has not been initialised");
    return state;
}

// Store the state, and begin the next phase if nothing is pending. Only threads of its own block can wait for an mbarrier.
void settle(Worker& owner, std::uint64_t* barrier, Mbarrier state) {
    const bool complete = !state.pending && !state.bytes;
    if (complete) state.pending = state.count, state.parity ^= 1;
    state.store(barrier);
    if (!complete) return;
    if (owner.sanitizer) owner.sanitizer->phase_complete(this_worker(), barrier);
    const void* place = resting_place(barrier);
    for (Thread& thread : owner.threads)
        if (thread.waiting_for == kMbarrier && thread.data == place && thread.mask != state.parity) make_ready(owner, thread);
}

void complete_bytes(Worker& owner, std::uint64_t* barrier, unsigned bytes) {
    Mbarrier state = Mbarrier::load(barrier);
    state.bytes -= static_cast<int>(bytes);
    settle(owner, barrier, state);
}

void check_shared(const void* address, unsigned bytes, unsigned alignment, void* pc, const char* what) {
    const auto where = reinterpret_cast<std::uintptr_t>(address);
    if (shared_offset(address) == ~0u) refuse(pc, std::string(what) + ": the address on the block's side is not in shared memory");
    if (where % alignment == 0) return;
    Worker& worker = this_worker();
    if (worker.sanitizer) worker.sanitizer->misaligned(worker, this_thread(), where, alignment, kWrite, pc);
    char text[128];
    std::snprintf(text, sizeof text, "%s: the address in shared memory is no multiple of %u bytes", what, alignment);
    (void)bytes;
    refuse(pc, text);
}

void check_in_cluster(unsigned rank, void* pc, const char* what) {
    const std::size_t size = this_worker().cluster->blocks.size();
    if (rank < size) return;
    const std::string text = "calls " + std::string(what) + " for a block of rank " + std::to_string(rank) + ", and its cluster has " + std::to_string(size);
    Worker& worker = this_worker();
    if (worker.sanitizer) worker.sanitizer->misuse(worker, this_thread(), kOutOfBounds, text, pc);
    refuse(pc, "a thread " + text);
}

void check_bulk(const void* shared, const void* global, unsigned bytes, void* pc, const char* what) {
    check_shared(shared, bytes, 16, pc, what);
    if (bytes % 16) refuse(pc, std::string(what) + ": the number of bytes must be a multiple of 16");
    if (reinterpret_cast<std::uintptr_t>(global) % 16) refuse(pc, std::string(what) + ": the address in global memory is no multiple of 16 bytes");
}

// ---- tensor maps

// Calls `visit(tensor byte or null, shared byte, bytes)` for every 16 bytes of the box, in the order in which they lie in shared
// memory before swizzling; null: outside the tensor. A piece at the edge of the tensor comes in two parts.
template <class Visit> void each_piece(const TensorMapData& map, const int* coordinates, char* shared, Visit visit) {
    const unsigned row_bytes = map.box[0] * map.element_bytes;
    unsigned rows = 1;
    for (unsigned axis = 1; axis < map.rank; ++axis) rows *= map.box[axis];
    const std::int64_t first = static_cast<std::int64_t>(coordinates[0]) * map.element_bytes;
    const std::int64_t inner_bytes = static_cast<std::int64_t>(map.size[0]) * map.element_bytes;
    for (unsigned row = 0; row < rows; ++row) {
        char* source = reinterpret_cast<char*>(map.address);
        bool inside = true;
        unsigned rest = row;
        for (unsigned axis = 1; axis < map.rank; ++axis) {
            const std::int64_t index = static_cast<std::int64_t>(coordinates[axis]) + rest % map.box[axis];
            rest /= map.box[axis];
            inside = inside && index >= 0 && index < map.size[axis];
            source += index * static_cast<std::int64_t>(map.stride_bytes[axis - 1]);
        }
        for (unsigned piece = 0; piece < row_bytes; piece += 16) {
            auto target = reinterpret_cast<std::uintptr_t>(shared) + row * row_bytes + piece;
            target ^= target >> 3 & (map.swizzle_bytes ? map.swizzle_bytes - 16 : 0);     // bits 4.. take up bits 7..
            const std::int64_t begin = first + piece, end = begin + std::min(16u, row_bytes - piece);
            const std::int64_t low = inside ? std::clamp<std::int64_t>(0, begin, end) : end;
            const std::int64_t high = inside ? std::clamp<std::int64_t>(inner_bytes, low, end) : end;
            auto* place = reinterpret_cast<char*>(target);
            if (low > begin) visit(static_cast<char*>(nullptr), place, static_cast<unsigned>(low - begin));
            if (high > low) visit(source + low, place + (low - begin), static_cast<unsigned>(high - low));
            if (end > high) visit(static_cast<char*>(nullptr), place + (high - begin), static_cast<unsigned>(end - high));
        }
    }
}

const TensorMapData& checked_map(const void* raw, unsigned rank, void* pc, const char* what) {
    const auto& map = *static_cast<const TensorMapData*>(raw);
    if (map.magic != kTensorMapMagic) refuse(pc, std::string(what) + ": this is no tensor map made for cpu tensors");
    if (map.rank == rank) return map;
    refuse(pc, std::string(what) + ": " + std::to_string(rank) + " coordinates for a tensor map of " + std::to_string(map.rank) + " axes");
}

float half_value(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float magnitude = exponent == 31 ? (fraction ? __builtin_nanf("") : __builtin_inff())
                            : exponent ? __builtin_ldexpf(static_cast<float>(1024 + fraction), exponent - 25)
                                       : __builtin_ldexpf(static_cast<float>(fraction), -24);
    return bits & 0x8000 ? -magnitude : magnitude;
}

std::uint16_t half_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const std::uint16_t sign = bits >> 16 & 0x8000;
    if (value != value) return sign | 0x7e00;
    const float magnitude = __builtin_fabsf(value);
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    int exponent = std::max(static_cast<int>(bits >> 23 & 255) - 127, -14);
    const auto steps = static_cast<std::uint32_t>(__builtin_rintf(__builtin_ldexpf(magnitude, 10 - exponent)));    // to nearest even
    return static_cast<std::uint16_t>(sign | (steps + (static_cast<std::uint32_t>(exponent + 14) << 10)));
}

void add_elements(ElementKind kind, char* target, const char* source, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i += kind == kFloat16 || kind == kBfloat16 ? 2 : 4) {
        if (kind == kFloat32) {
            float sum, more;
            std::memcpy(&sum, target + i, 4), std::memcpy(&more, source + i, 4);
            sum += more;
            std::memcpy(target + i, &sum, 4);
        } else if (kind == kInt32) {
            std::uint32_t sum, more;
            std::memcpy(&sum, target + i, 4), std::memcpy(&more, source + i, 4);
            sum += more;
            std::memcpy(target + i, &sum, 4);
        } else if (kind == kFloat16) {
            std::uint16_t sum, more;
            std::memcpy(&sum, target + i, 2), std::memcpy(&more, source + i, 2);
            sum = half_bits(half_value(sum) + half_value(more));
            std::memcpy(target + i, &sum, 2);
        } else {
            std::uint16_t old, more;
            std::memcpy(&old, target + i, 2), std::memcpy(&more, source + i, 2);
            std::uint32_t a = std::uint32_t(old) << 16, b = std::uint32_t(more) << 16, bits;
            float x, y;
            std::memcpy(&x, &a, 4), std::memcpy(&y, &b, 4);
            x += y;
            std::memcpy(&bits, &x, 4);
            old = static_cast<std::uint16_t>(x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
            std::memcpy(target + i, &old, 2);
        }
    }
}

// A box of the tensor comes to `shared`, and its bytes to `barrier`, both of them in the shared memory of `owner`.
void load_box(Worker& owner, void* shared, const TensorMapData& map, const int* coordinates, std::uint64_t* barrier, void* pc, const char* what) {
    Worker& worker = this_worker();
    load_checked(barrier, pc, what, &owner != &worker);
    if (worker.sanitizer) worker.sanitizer->begin_load(worker, this_thread(), barrier);
    unsigned total = 0;
    each_piece(map, coordinates, static_cast<char*>(shared), [&](const char* source, char* target, unsigned bytes) {
        if (worker.sanitizer) {
            if (source) worker.sanitizer->agent_access(worker, source, bytes, kRead, pc);
            worker.sanitizer->agent_access(worker, target, bytes, kWrite, pc);
            worker.sanitizer->remember_swizzle(target, map.swizzle_bytes);
        }
        if (source) std::memcpy(target, source, bytes);
        else std::memset(target, 0, bytes);
        total += bytes;
    });
    complete_bytes(owner, barrier, total);
}

}  // namespace

// The kernel library's thread-local storage on this OS thread, which holds its static __shared__ arrays.
void find_static_shared(Worker& worker) {
    struct Search { Launch* launch; Worker* worker; } search{worker.launch, &worker};
    dl_iterate_phdr([](dl_phdr_info* info, std::size_t, void* raw) {
        auto* wanted = static_cast<Search*>(raw);
        bool ours = false;
        std::size_t bytes = 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& segment = info->dlpi_phdr[i];
            if (segment.p_type == PT_TLS) bytes = segment.p_memsz;
            if (segment.p_type == PT_LOAD && wanted->launch->kernel_text.holds(info->dlpi_addr + segment.p_vaddr)) ours = true;
        }
        if (!ours) return 0;
        wanted->worker->static_shared = static_cast<char*>(info->dlpi_tls_data);
        wanted->worker->static_shared_bytes = info->dlpi_tls_data ? bytes : 0;
        return 1;
    }, &search);
    alignas(kSwizzlePeriod) static char nothing;  // found out once: the kernel has none
    if (!worker.static_shared) worker.static_shared = &nothing;
}

unsigned shared_offset(const void* address) {
    Worker& worker = this_worker();
    const auto* byte = static_cast<const char*>(address);
    const std::ptrdiff_t offset = byte - static_cast<char*>(worker.dynamic_shared);
    if (offset >= 0 && offset < kSharedWindow) return static_cast<unsigned>(offset);
    if (!worker.static_shared) find_static_shared(worker);
    const std::ptrdiff_t beyond = byte - worker.static_shared;
    if (beyond < 0 || beyond >= static_cast<std::ptrdiff_t>(worker.static_shared_bytes)) return ~0u;
    return static_window(worker) + static_cast<unsigned>(beyond);
}

void* shared_pointer(unsigned offset) {
    Worker& worker = this_worker();
    if (!worker.static_shared) find_static_shared(worker);
    const unsigned window = static_window(worker);
    if (worker.static_shared_bytes && offset >= window && offset < window + worker.static_shared_bytes)
        return worker.static_shared + (offset - window);
    return offset < kSharedWindow ? static_cast<char*>(worker.dynamic_shared) + offset : nullptr;
}

// ---- named barriers

void named_barrier(unsigned id, unsigned threads, bool wait) {
    Worker& worker = this_worker();
    Thread& thread = this_thread();
    void* pc = __builtin_return_address(0);
    thread.last_pc = pc;
    if (id < 1 || id > 15) refuse(pc, "a named barrier has a number from 1 to 15 (0 is that of __syncthreads), not " + std::to_string(id));
    if (!threads || threads % 32) refuse(pc, "named barrier " + std::to_string(id) + ": the number of threads must be a multiple of 32");
    NamedBarrier& barrier = worker.named[id];
    if (barrier.arrived && barrier.expected != threads)
        refuse(pc, "named barrier " + std::to_string(id) + ": this thread expects " + std::to_string(threads) + " threads, those before it " +
                       std::to_string(barrier.expected));
    barrier.expected = threads;
    if (!barrier.arrived) std::memset(barrier.who, 0, sizeof barrier.who);
    if (worker.sanitizer && barrier.who[thread.warp] >> thread.lane & 1) worker.sanitizer->arrives_again(worker, thread, pc);
    barrier.who[thread.warp] |= 1u << thread.lane;
    if (worker.sanitizer) worker.sanitizer->channel_arrive(worker, thread, worker.rank * 16 + id, false);
    const bool complete = ++barrier.arrived == threads;
    if (complete) {
        barrier.arrived = 0;
        if (worker.sanitizer) worker.sanitizer->channel_complete(worker, worker.rank * 16 + id);
        for (Thread& other : worker.threads)
            if (other.waiting_for == kNamedBarrier && other.mask == id) make_ready(worker, other);
    }
    if (!wait) return;
    if (!complete) {
        thread.mask = id;
        wait_in(worker, thread, kNamedBarrier, pc);
    }
    if (worker.sanitizer) worker.sanitizer->channel_acquire(worker, thread, worker.rank * 16 + id, false);
}

// ---- mbarriers

void mbarrier_init(std::uint64_t* barrier, unsigned count) {
    Worker& worker = this_worker();
    void* pc = __builtin_return_address(0);
    if (shared_offset(barrier) == ~0u) refuse(pc, "mbarrier_init: the mbarrier is not in shared memory");
    if (!count || count > 0xfffff) refuse(pc, "mbarrier_init: the count must be 1 to 1048575");
    if (worker.sanitizer) worker.sanitizer->mbarrier_access(worker, this_thread(), barrier, true, pc);
    Mbarrier{count, count, 0, 0}.store(barrier);
}

void mbarrier_arrive(std::uint64_t* barrier, unsigned count, unsigned bytes) {
    Worker& worker = this_worker();
    void* pc = __builtin_return_address(0);
    Mbarrier state = load_checked(barrier, pc, "mbarrier_arrive");
    if (state.pending < count) refuse(pc, "mbarrier_arrive: more arrivals in one phase than the " + std::to_string(state.count) + " of mbarrier_init");
    if (worker.sanitizer) worker.sanitizer->channel_arrive(worker, this_thread(), resting(worker, reinterpret_cast<std::uintptr_t>(barrier)), false);
    state.pending -= count;
    state.bytes += static_cast<int>(bytes);
    settle(worker, barrier, state);
}

void mbarrier_expect(std::uint64_t* barrier, unsigned bytes) {
    Mbarrier state = load_checked(barrier, __builtin_return_address(0), "mbarrier_expect_tx");
    state.bytes += static_cast<int>(bytes);
    state.store(barrier);
}

void mbarrier_arrive_remote(std::uint64_t* barrier, unsigned rank) {
    Worker& worker = this_worker();
    void* pc = __builtin_return_address(0);
    check_in_cluster(rank, pc, "mbarrier_arrive_remote");
    if (shared_offset(barrier) == ~0u) refuse(pc, "mbarrier_arrive_remote: the mbarrier is not in this block's shared memory: give it yours and a rank");
    Worker& owner = *worker.cluster->blocks[rank];
    auto* theirs = reinterpret_cast<std::uint64_t*>(in_block(owner, barrier));
    Mbarrier state = load_checked(theirs, pc, "mbarrier_arrive_remote", true);
    if (!state.pending) refuse(pc, "mbarrier_arrive_remote: more arrivals in one phase than the " + std::to_string(state.count) + " of mbarrier_init");
    if (worker.sanitizer)
        worker.sanitizer->channel_arrive(worker, this_thread(), resting(worker, reinterpret_cast<std::uintptr_t>(theirs)), &owner != &worker);
    --state.pending;
    settle(owner, theirs, state);
}

bool mbarrier_test(std::uint64_t* barrier, unsigned parity, bool cluster_scope) {
    Worker& worker = this_worker();
    const bool done = load_checked(barrier, __builtin_return_address(0), "mbarrier_try_wait").parity != (parity & 1);
    if (done && worker.sanitizer)
        worker.sanitizer->channel_acquire(worker, this_thread(), resting(worker, reinterpret_cast<std::uintptr_t>(barrier)), cluster_scope);
    if (!done) yield();
    return done;
}

void mbarrier_wait(std::uint64_t* barrier, unsigned parity, bool cluster_scope) {
    Worker& worker = this_worker();
    Thread& thread = this_thread();
    void* pc = __builtin_return_address(0);
    thread.last_pc = pc;
    if (load_checked(barrier, pc, "mbarrier_wait").parity == (parity & 1)) {
        thread.data = resting_place(barrier);
        thread.mask = parity & 1;
        wait_in(worker, thread, kMbarrier, pc);
    }
    if (worker.sanitizer)
        worker.sanitizer->channel_acquire(worker, thread, resting(worker, reinterpret_cast<std::uintptr_t>(barrier)), cluster_scope);
}

// ---- bulk copies

void bulk_load(void* shared, const void* global, unsigned bytes, std::uint64_t* barrier) {
    Worker& worker = this_worker();
    void* pc = __builtin_return_address(0);
    check_bulk(shared, global, bytes, pc, "bulk_load");
    load_checked(barrier, pc, "bulk_load");
    if (worker.sanitizer) {
        worker.sanitizer->begin_load(worker, this_thread(), barrier);
        worker.sanitizer->agent_access(worker, global, bytes, kRead, pc);
        worker.sanitizer->agent_access(worker, shared, bytes, kWrite, pc);
    }
    std::memcpy(shared, global, bytes);
    complete_bytes(worker, barrier, bytes);
}

void bulk_store(void* global, const void* shared, unsigned bytes) {
    Worker& worker = this_worker();
    void* pc = __builtin_return_address(0);
    check_bulk(shared, global, bytes, pc, "bulk_store");
    this_thread().last_pc = pc;
    if (worker.sanitizer) {
        worker.sanitizer->begin_store(worker, this_thread(), false);
        worker.sanitizer->agent_access(worker, shared, bytes, kRead, pc);
        worker.sanitizer->begin_store(worker, this_thread(), true);
        worker.sanitizer->agent_access(worker, global, bytes, kWrite, pc);
    }
    std::memcpy(global, shared, bytes);
}

void tensor_load(void* shared, const void* raw, const int* coordinates, unsigned rank, std::uint64_t* barrier) {
    void* pc = __builtin_return_address(0);
    const TensorMapData map = checked_map(raw, rank, pc, "tma_load");
    check_shared(shared, 0, 128, pc, "tma_load");
    load_box(this_worker(), shared, map, coordinates, barrier, pc, "tma_load");
}

void tensor_load_multicast(void* shared, const void* raw, const int* coordinates, unsigned rank, std::uint64_t* barrier, unsigned blocks) {
    Worker& worker = this_worker();
    void* pc = __builtin_return_address(0);
    const TensorMapData map = checked_map(raw, rank, pc, "tma_load_multicast");
    check_shared(shared, 0, 128, pc, "tma_load_multicast");
    if (shared_offset(barrier) == ~0u) refuse(pc, "tma_load_multicast: the mbarrier is not in this block's shared memory");
    for (unsigned target = 0; target < 16; ++target) {
        if (!(blocks >> target & 1)) continue;
        check_in_cluster(target, pc, "tma_load_multicast");
        Worker& owner = *worker.cluster->blocks[target];
        load_box(owner, in_block(owner, shared), map, coordinates, reinterpret_cast<std::uint64_t*>(in_block(owner, barrier)), pc,
                 "tma_load_multicast");
    }
}

void tensor_store(const void* raw, const int* coordinates, unsigned rank, const void* shared, bool add) {
    Worker& worker = this_worker();
    void* pc = __builtin_return_address(0);
    const char* what = add ? "tma_reduce_add" : "tma_store";
    const TensorMapData map = checked_map(raw, rank, pc, what);
    const auto kind = static_cast<ElementKind>(map.kind);
    if (add && kind != kFloat32 && kind != kFloat16 && kind != kBfloat16 && kind != kInt32)
        refuse(pc, "tma_reduce_add: the tensor must be float32, float16, bfloat16 or int32");
    for (unsigned i = 0; i < rank; ++i)
        if (coordinates[i] < 0) refuse(pc, std::string(what) + ": a coordinate is negative, which a store may not have (a load may)");
    check_shared(shared, 0, 128, pc, what);
    const auto pieces = [&](auto visit) {
        each_piece(map, coordinates, static_cast<char*>(const_cast<void*>(shared)), [&](char* target, char* source, unsigned bytes) {
            if (target) visit(target, source, bytes);
        });
    };
    this_thread().last_pc = pc;
    if (worker.sanitizer) {                     // the two sides end at different times: wait_group.read waits for the first only
        worker.sanitizer->begin_store(worker, this_thread(), false);
        pieces([&](char*, char* source, unsigned bytes) { worker.sanitizer->agent_access(worker, source, bytes, kRead, pc); });
        worker.sanitizer->begin_store(worker, this_thread(), true);
        pieces([&](char* target, char*, unsigned bytes) { worker.sanitizer->agent_access(worker, target, bytes, add ? kAtomic : kWrite, pc); });
    }
    static std::mutex additions;                // of other blocks, on other cores
    worker.busy = true;
    {
        std::unique_lock<std::mutex> lock(additions, std::defer_lock);
        if (add) lock.lock();
        pieces([&](char* target, char* source, unsigned bytes) {
            if (add) add_elements(kind, target, source, bytes);
            else std::memcpy(target, source, bytes);
        });
    }
    worker.busy = false;
}

void bulk_commit() {
    Worker& worker = this_worker();
    if (worker.sanitizer) worker.sanitizer->commit_stores(this_thread());
}

void bulk_wait(unsigned pending, bool read_only) {
    Worker& worker = this_worker();
    if (worker.sanitizer) worker.sanitizer->wait_stores(worker, this_thread(), pending, read_only);
}

void proxy_fence() {
    Worker& worker = this_worker();
    if (worker.sanitizer) worker.sanitizer->proxy_fence(worker, this_thread());
}

void grid_dependency_wait() {
    Worker& worker = this_worker();
    if (worker.sanitizer) worker.sanitizer->kernel_before_ended(worker, this_thread());
}

}  // namespace lk
