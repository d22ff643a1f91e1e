// What CUDA device code has besides the core of lk_runtime.h. Part of the precompiled prelude lk_cuda.h.
//
// overlay/ must come before NVIDIA's headers in the include path: it holds the headers that are found in their place.
#pragma once
#include "types.h"
#include "bits.h"
#include "integer.h"
#include "convert.h"
#include "minmax.h"
#include "special_functions.h"
#include "rounding.h"
#include "fast_math.h"
#include "cache_hints.h"
#include "half.h"
#include "warp.h"
#include "atomics.h"
#include "misc.h"
