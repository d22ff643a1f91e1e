// What the compiler calls in an instrumented kernel: before every access (-fsanitize=thread), for every index outside its
// dimension and every misaligned vector (-fsanitize=bounds,alignment), in every basic block (-fsanitize-coverage=trace-pc).
// The compiler's own libraries, which define these functions otherwise, are not linked.
#include "machine.h"
#include "profiler.h"
#include "sanitizer.h"

namespace {

inline void on_access(void* address, unsigned long bytes, lk::AccessKind kind, bool is_volatile, bool aligned, void* pc) {
    auto* worker = static_cast<lk::Worker*>(lk_block);
    if (!worker || !worker->current) return;
    const auto where = reinterpret_cast<std::uintptr_t>(address);
    if (worker->sanitizer)
        worker->sanitizer->access(*worker, *worker->current, where, static_cast<unsigned>(bytes), kind, is_volatile, aligned, pc);
    else if (worker->profiler && !worker->busy)         // busy: one lane does the emulator's work for its whole warp
        worker->profiler->access(*worker, *worker->current, where, static_cast<unsigned>(bytes), kind == lk::kWrite, false,
                                 reinterpret_cast<std::uint64_t>(pc));
}

struct TypeDescriptor { std::uint16_t kind, info; char name[1]; };
struct OutOfBoundsData { const char* file; std::uint32_t line, column; TypeDescriptor* array; TypeDescriptor* index; };

struct TypeMismatchData { const char* file; std::uint32_t line, column; TypeDescriptor* type; std::uint8_t log_alignment, kind; };

void on_type_mismatch(TypeMismatchData* data, std::uintptr_t address, void* pc) {
    auto* worker = static_cast<lk::Worker*>(lk_block);
    if (!worker || !worker->sanitizer || !worker->current) return;
    worker->sanitizer->misaligned(*worker, *worker->current, address, 1u << data->log_alignment,
                                  data->kind == 1 ? lk::kWrite : lk::kRead, pc);
}

void on_array_index(OutOfBoundsData* data, std::uintptr_t index, void* pc) {
    auto* worker = static_cast<lk::Worker*>(lk_block);
    if (!worker || !worker->sanitizer || !worker->current) return;
    const unsigned bits = 1u << (data->index->info >> 1);
    std::int64_t value = static_cast<std::int64_t>(index);
    if (data->index->info & 1 && bits < 64) value = static_cast<std::int64_t>(index << (64 - bits)) >> (64 - bits);
    worker->sanitizer->array_index(*worker, *worker->current, data->array->name, value, pc);
}

}  // namespace

#define LK_HOOK(bytes)                                                                                                     \
    void __tsan_read##bytes(void* p) { on_access(p, bytes, lk::kRead, false, true, __builtin_return_address(0)); }         \
    void __tsan_write##bytes(void* p) { on_access(p, bytes, lk::kWrite, false, true, __builtin_return_address(0)); }       \
    void __tsan_volatile_read##bytes(void* p) { on_access(p, bytes, lk::kRead, true, true, __builtin_return_address(0)); } \
    void __tsan_volatile_write##bytes(void* p) { on_access(p, bytes, lk::kWrite, true, true, __builtin_return_address(0)); } \
    void __tsan_unaligned_read##bytes(void* p) { on_access(p, bytes, lk::kRead, false, false, __builtin_return_address(0)); } \
    void __tsan_unaligned_write##bytes(void* p) { on_access(p, bytes, lk::kWrite, false, false, __builtin_return_address(0)); } \
    void __tsan_unaligned_volatile_read##bytes(void* p) { on_access(p, bytes, lk::kRead, true, false, __builtin_return_address(0)); } \
    void __tsan_unaligned_volatile_write##bytes(void* p) { on_access(p, bytes, lk::kWrite, true, false, __builtin_return_address(0)); }

extern "C" {
LK_HOOK(1) LK_HOOK(2) LK_HOOK(4) LK_HOOK(8) LK_HOOK(16)
void __tsan_read_range(void* p, unsigned long n) { on_access(p, n, lk::kRead, false, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, unsigned long n) { on_access(p, n, lk::kWrite, false, false, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __ubsan_handle_out_of_bounds(OutOfBoundsData* data, std::uintptr_t index) {
    on_array_index(data, index, __builtin_return_address(0));
}
void __ubsan_handle_out_of_bounds_abort(OutOfBoundsData* data, std::uintptr_t index) {
    on_array_index(data, index, __builtin_return_address(0));
}
void __ubsan_handle_type_mismatch_v1(TypeMismatchData* data, std::uintptr_t address) {
    on_type_mismatch(data, address, __builtin_return_address(0));
}
void __ubsan_handle_type_mismatch_v1_abort(TypeMismatchData* data, std::uintptr_t address) {
    on_type_mismatch(data, address, __builtin_return_address(0));
}
void __sanitizer_cov_trace_pc() {
    auto* worker = static_cast<lk::Worker*>(lk_block);
    if (!worker || !worker->current || !worker->profiler || worker->busy) return;
    worker->profiler->basic_block(*worker, *worker->current, reinterpret_cast<std::uint64_t>(__builtin_return_address(0)));
}
}
