// What warp-specialised kernels (sm_90a) share: the size of a warpgroup, of a row of a swizzled tile, and the ring of stages between them.
#pragma once

constexpr int GROUP = 128;      // threads of a warpgroup
constexpr int ROW_BYTES = 128;  // of a tile in shared memory: what one swizzle spans

// Which of COUNT stages is next, and the parity of its phase. Producer and consumers each have one, and advance it in step.
template <int COUNT>
struct Ring {
    int stage = 0, parity = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == COUNT) {
            stage = 0;
            parity ^= 1;
        }
    }
};
