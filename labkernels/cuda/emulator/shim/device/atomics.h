// Atomic functions on global and shared memory: real atomics between OS threads, and told to the runtime first.
// They stay out of line, so that the return address is the user's source line.
#pragma once
#include "bits.h"

#define LK_ATOMIC inline __attribute__((noinline, no_sanitize("thread")))
#define LK_ON_ATOMIC(address) \
    lk::on_atomic(const_cast<void*>(static_cast<const volatile void*>(address)), sizeof *(address), __builtin_return_address(0))

namespace lk {

template <unsigned size> struct Word;
template <> struct Word<2> { using type = std::uint16_t; };
template <> struct Word<4> { using type = std::uint32_t; };
template <> struct Word<8> { using type = std::uint64_t; };

// Replace the value by operation(value) in one step; the old value is returned.
template <class T, class Operation> __attribute__((always_inline, no_sanitize("thread"))) inline T atomic_update(T* address, Operation operation) {
    using W = typename Word<sizeof(T)>::type;
    W* word = reinterpret_cast<W*>(address);
    W old = __atomic_load_n(word, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(word, &old, bits<W>(operation(bits<T>(old))), true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    }
    return bits<T>(old);
}

}  // namespace lk

// A function under its three scopes: of the device, of the block, of the whole system. Here they are the same.
#define LK_ATOMIC_FUNCTION(T, name, expression, ...) \
    LK_ATOMIC T name(T* address, ##__VA_ARGS__) { LK_ON_ATOMIC(address); expression; } \
    LK_ATOMIC T name##_block(T* address, ##__VA_ARGS__) { LK_ON_ATOMIC(address); expression; } \
    LK_ATOMIC T name##_system(T* address, ##__VA_ARGS__) { LK_ON_ATOMIC(address); expression; }

#define LK_FETCH(T, name, operation) \
    LK_ATOMIC_FUNCTION(T, name, return __atomic_fetch_##operation(address, value, __ATOMIC_SEQ_CST), T value)
#define LK_UPDATE(T, name, expression) \
    LK_ATOMIC_FUNCTION(T, name, return lk::atomic_update(address, [=](T old) { return expression; }), T value)
#define LK_EXCHANGE(T) \
    LK_ATOMIC_FUNCTION(T, atomicExch, T old; __atomic_exchange(address, &value, &old, __ATOMIC_SEQ_CST); return old, T value)
#define LK_COMPARE_AND_SWAP(T) \
    LK_ATOMIC_FUNCTION(T, atomicCAS, __atomic_compare_exchange_n(address, &compare, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
                       return compare, T compare, T value)

#define LK_INTEGER_ATOMICS(T) \
    LK_FETCH(T, atomicAnd, and) LK_FETCH(T, atomicOr, or) LK_FETCH(T, atomicXor, xor) \
    LK_UPDATE(T, atomicMin, old < value ? old : value) LK_UPDATE(T, atomicMax, old > value ? old : value) \
    LK_EXCHANGE(T) LK_COMPARE_AND_SWAP(T)
LK_INTEGER_ATOMICS(int)
LK_INTEGER_ATOMICS(unsigned)
LK_INTEGER_ATOMICS(unsigned long long)
LK_UPDATE(long long, atomicMin, old < value ? old : value)
LK_UPDATE(long long, atomicMax, old > value ? old : value)
LK_FETCH(long long, atomicAnd, and)
LK_FETCH(long long, atomicOr, or)
LK_FETCH(long long, atomicXor, xor)
LK_COMPARE_AND_SWAP(unsigned short)
LK_EXCHANGE(float)

LK_FETCH(int, atomicAdd, add)
LK_FETCH(unsigned, atomicAdd, add)
LK_FETCH(unsigned long long, atomicAdd, add)
LK_FETCH(int, atomicSub, sub)
LK_FETCH(unsigned, atomicSub, sub)
LK_UPDATE(unsigned, atomicInc, old >= value ? 0 : old + 1)
LK_UPDATE(unsigned, atomicDec, old == 0 || old > value ? value : old - 1)

LK_UPDATE(float, atomicAdd, old + value)
LK_UPDATE(double, atomicAdd, old + value)
LK_UPDATE(__half, atomicAdd, __hadd(old, value))
LK_UPDATE(__nv_bfloat16, atomicAdd, __hadd(old, value))
// Of a pair or a vector each element is added atomically, not the whole.
LK_UPDATE(__half2, atomicAdd, __hadd2(old, value))
LK_UPDATE(__nv_bfloat162, atomicAdd, __hadd2(old, value))
#define LK_ADD_ELEMENT(e) old.e = lk::atomic_update(&address->e, [=](float element) { return element + value.e; })
LK_ATOMIC_FUNCTION(float2, atomicAdd, float2 old; LK_ADD_ELEMENT(x); LK_ADD_ELEMENT(y); return old, float2 value)
LK_ATOMIC_FUNCTION(float4, atomicAdd,
                   float4 old; LK_ADD_ELEMENT(x); LK_ADD_ELEMENT(y); LK_ADD_ELEMENT(z); LK_ADD_ELEMENT(w); return old, float4 value)

#undef LK_ADD_ELEMENT
#undef LK_INTEGER_ATOMICS
#undef LK_COMPARE_AND_SWAP
#undef LK_EXCHANGE
#undef LK_UPDATE
#undef LK_FETCH
#undef LK_ATOMIC_FUNCTION
#undef LK_ON_ATOMIC
#undef LK_ATOMIC
