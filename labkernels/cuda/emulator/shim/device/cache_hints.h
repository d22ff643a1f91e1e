// Loads and stores that tell a GPU's caches what to do (__ldg, __ldcs, __stcg ...). Here they are plain accesses.
#pragma once
#include "types.h"

#define LK_LOAD(name, Type) LK_DEVICE Type name(const Type* address) { return *address; }
#define LK_STORE(name, Type) LK_DEVICE void name(Type* address, Type value) { *address = value; }
#define LK_HINTS(Type) \
    LK_LOAD(__ldg, Type) LK_LOAD(__ldca, Type) LK_LOAD(__ldcg, Type) LK_LOAD(__ldcs, Type) LK_LOAD(__ldlu, Type) LK_LOAD(__ldcv, Type) \
    LK_STORE(__stwb, Type) LK_STORE(__stcg, Type) LK_STORE(__stcs, Type) LK_STORE(__stwt, Type)

LK_HINTS(char) LK_HINTS(signed char) LK_HINTS(unsigned char) LK_HINTS(short) LK_HINTS(unsigned short)
LK_HINTS(int) LK_HINTS(unsigned) LK_HINTS(long) LK_HINTS(unsigned long) LK_HINTS(long long) LK_HINTS(unsigned long long)
LK_HINTS(float) LK_HINTS(double)
LK_HINTS(char2) LK_HINTS(char4) LK_HINTS(uchar2) LK_HINTS(uchar4) LK_HINTS(short2) LK_HINTS(short4) LK_HINTS(ushort2) LK_HINTS(ushort4)
LK_HINTS(int2) LK_HINTS(int4) LK_HINTS(uint2) LK_HINTS(uint4) LK_HINTS(longlong2) LK_HINTS(ulonglong2)
LK_HINTS(float2) LK_HINTS(float4) LK_HINTS(double2)
LK_HINTS(__half) LK_HINTS(__half2) LK_HINTS(__nv_bfloat16) LK_HINTS(__nv_bfloat162)

#undef LK_HINTS
#undef LK_LOAD
#undef LK_STORE
