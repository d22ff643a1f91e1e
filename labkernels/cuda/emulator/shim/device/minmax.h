// min and max for every arithmetic type, as CUDA declares them in the global namespace. For floats a NaN loses.
#pragma once
#include "types.h"

#define LK_MINMAX(Result, A, B) \
    LK_DEVICE Result min(A a, B b) { return static_cast<Result>(a) < static_cast<Result>(b) ? static_cast<Result>(a) : static_cast<Result>(b); } \
    LK_DEVICE Result max(A a, B b) { return static_cast<Result>(a) > static_cast<Result>(b) ? static_cast<Result>(a) : static_cast<Result>(b); }
LK_MINMAX(int, int, int)
LK_MINMAX(unsigned, unsigned, unsigned)
LK_MINMAX(unsigned, int, unsigned)
LK_MINMAX(unsigned, unsigned, int)
LK_MINMAX(long, long, long)
LK_MINMAX(unsigned long, unsigned long, unsigned long)
LK_MINMAX(unsigned long, long, unsigned long)
LK_MINMAX(unsigned long, unsigned long, long)
LK_MINMAX(long long, long long, long long)
LK_MINMAX(unsigned long long, unsigned long long, unsigned long long)
LK_MINMAX(unsigned long long, long long, unsigned long long)
LK_MINMAX(unsigned long long, unsigned long long, long long)
#undef LK_MINMAX

// As fmin and fmax, without the call into libm: they are the inner loop of every softmax.
#define LK_FLOAT_MINMAX(Result, A, B) \
    LK_DEVICE Result min(A a, B b) { return a < b || b != b ? static_cast<Result>(a) : static_cast<Result>(b); } \
    LK_DEVICE Result max(A a, B b) { return a > b || b != b ? static_cast<Result>(a) : static_cast<Result>(b); }
LK_FLOAT_MINMAX(float, float, float)
LK_FLOAT_MINMAX(double, double, double)
LK_FLOAT_MINMAX(double, float, double)
LK_FLOAT_MINMAX(double, double, float)
#undef LK_FLOAT_MINMAX

LK_DEVICE unsigned umin(unsigned a, unsigned b) { return min(a, b); }
LK_DEVICE unsigned umax(unsigned a, unsigned b) { return max(a, b); }
LK_DEVICE long long llmin(long long a, long long b) { return min(a, b); }
LK_DEVICE long long llmax(long long a, long long b) { return max(a, b); }
LK_DEVICE unsigned long long ullmin(unsigned long long a, unsigned long long b) { return min(a, b); }
LK_DEVICE unsigned long long ullmax(unsigned long long a, unsigned long long b) { return max(a, b); }
