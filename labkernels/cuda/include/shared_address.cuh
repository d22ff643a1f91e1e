// An address in shared memory as PTX wants it: 32 bits, counted from the start of the block's shared memory.
#pragma once

#ifndef LK_EMULATOR
__device__ __forceinline__ unsigned shared_address(const void* pointer) { return static_cast<unsigned>(__cvta_generic_to_shared(pointer)); }
#endif
