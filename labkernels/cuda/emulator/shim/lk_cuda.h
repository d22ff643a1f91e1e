// The prelude of every emulated source, precompiled: CUDA C++'s built-in names as host C++.
#pragma once
#include <bits/c++config.h>
#undef _GLIBCXX_USE_STD_SPEC_FUNCS  // std::legendre and its kin, which CUDA has not: a third of what a compiler does for an empty kernel
#include "lk_runtime.h"
#include "lk_async.h"
#include "lk_call.h"
#include "device/device.h"
#include "lk_keywords.h"
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 900
#endif
