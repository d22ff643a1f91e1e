// Loads that say how long a cache should keep what they bring (sm_80). On results they have no influence.
#pragma once

// 16, 32, ... bytes on a multiple of 16, as the last to be evicted from L1 and L2: what comes after them goes first.
template <class T>
__device__ __forceinline__ T load_evict_last(const T* source) {
    static_assert(sizeof(T) % 16 == 0, "whole vectors of 16 bytes");
#ifdef LK_EMULATOR
    return *source;
#else
    T value;
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T) / 16); ++i) {
        uint4& part = reinterpret_cast<uint4*>(&value)[i];
        asm volatile("ld.global.L1::evict_last.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                     : "=r"(part.x), "=r"(part.y), "=r"(part.z), "=r"(part.w)
                     : "l"(__cvta_generic_to_global(reinterpret_cast<const uint4*>(source) + i)), "l"(policy));
    }
    return value;
#endif
}
