// The meaning of cp.async: a copy is queued with its data when it starts, and lands when its thread waits for it (async_copies.cpp).
#pragma once
#include "lk_runtime.h"

namespace lk {

constexpr unsigned kMostAsyncBytes = 16;        // of one copy
struct AsyncBytes { unsigned char byte[kMostAsyncBytes]; };

void queue_async_copy(void* shared, const AsyncBytes& data, unsigned bytes);
void commit_async_copies();
void wait_async_copies(unsigned groups_left);
void wait_all_async_copies();

template <int Bytes> struct alignas(Bytes) AsyncWord { unsigned char byte[Bytes]; };

template <int Bytes> inline __attribute__((always_inline)) void copy_async(void* shared, const void* global, int valid) {
    if (valid < 0 || valid > Bytes) fail("cp.async: the number of valid bytes must be between 0 and the size of the copy");
#ifndef LK_INSTRUMENTED                         // there the accesses themselves tell
    if (reinterpret_cast<std::uintptr_t>(shared) % Bytes) fail("cp.async: the destination is not a multiple of the copy's size");
    if (valid && reinterpret_cast<std::uintptr_t>(global) % Bytes) fail("cp.async: the source is not a multiple of the copy's size");
#endif
    AsyncBytes data{};
    if (valid == Bytes) {
        const AsyncWord<Bytes> word = *static_cast<const AsyncWord<Bytes>*>(global);
        __builtin_memcpy(data.byte, &word, Bytes);
    } else {
        for (int i = 0; i < valid; ++i) data.byte[i] = static_cast<const unsigned char*>(global)[i];
    }
    AsyncWord<Bytes> undefined;
    __builtin_memset(&undefined, 0xff, Bytes);
    *static_cast<AsyncWord<Bytes>*>(shared) = undefined;
    queue_async_copy(shared, data, Bytes);
}

}  // namespace lk
