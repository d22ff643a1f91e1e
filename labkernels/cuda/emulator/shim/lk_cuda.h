// The prelude of every emulated source, precompiled: CUDA C++'s built-in names as host C++.
#pragma once
#include "lk_runtime.h"
#include "lk_async.h"
#include "lk_call.h"
#include "device/device.h"
#include "lk_keywords.h"
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 900
#endif
