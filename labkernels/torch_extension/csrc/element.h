// The element types of the kernels, by the names that the operators know them by.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"

namespace labkernels {

template <class T>
constexpr Element element_of = Element::kBfloat16;
template <>
constexpr Element element_of<__half> = Element::kHalf;

}  // namespace labkernels
