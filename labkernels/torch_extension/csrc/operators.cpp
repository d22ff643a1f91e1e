// The operators on CUDA tensors, launched from C++: attention, attention_backward and matmul as their schemas in operators.py say.
//
// Each looks for a kernel that takes its inputs. Where there is none, or something is wrong with them, NAME_rawkernel has them: it knows all
// variants, and which argument to blame.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "launch.h"

namespace labkernels {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using MaybeInt = std::optional<int64_t>;
using Attended = std::tuple<Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

constexpr int kUnlimited = 0x3fffffff;  // UNLIMITED in visible.cuh

Gpu gpu_of(const Tensor& tensor) {
    static std::atomic<int> processors[64], architectures[64];
    const int index = tensor.get_device();
    int count = processors[index % 64], architecture = architectures[index % 64];
    if (count == 0 || architecture == 0) {
        int major = 0, minor = 0;
        check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index), "GPU");
        check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "GPU");
        check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "GPU");
        processors[index % 64] = count;
        architectures[index % 64] = architecture = 10 * major + minor;
    }
    return {index, count, architecture, c10::cuda::getCurrentCUDAStream(index)};
}

bool half_precision(const Tensor& tensor) { return tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf; }
Element element(const Tensor& tensor) { return tensor.scalar_type() == at::kHalf ? Element::kHalf : Element::kBfloat16; }
bool alike(const Tensor& x, const Tensor& y) { return x.scalar_type() == y.scalar_type() && x.device() == y.device(); }
bool on_16_bytes(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0; }

// Code for an architecture runs on GPUs of the same major version and a minor version at least as high; Hopper's on Hopper alone.
bool runs_on(int built_for, int gpu) { return built_for == 90 ? gpu == 90 : gpu / 10 == built_for / 10 && gpu >= built_for; }

// An operator by its name. `Schema` is the type of the C++ function that implements it.
template <class Schema>
c10::TypedOperatorHandle<Schema> find(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Schema>();
}

template <class... Tensors>
bool wants_gradient(const Tensors&... tensors) {
    const auto wants = [](const auto& given) {
        if constexpr (std::is_same_v<std::decay_t<decltype(given)>, Tensor>) return given.requires_grad();
        else return given && given->requires_grad();
    };
    return at::GradMode::is_enabled() && (wants(tensors) || ...);
}

// ---- matmul

int activation_number(const std::optional<c10::string_view>& name) {
    if (!name) return 0;
    return *name == "relu" ? 1 : *name == "gelu" ? 2 : *name == "gelu_tanh" ? 3 : *name == "silu" ? 4 : -1;
}

// The kernel that should take the least time, if each block works through its share of the tiles.
const MatmulKernel* best_kernel(const MatmulCall& call, Element of) {
    const MatmulKernel* best = nullptr;
    float least = 0.0f;
    const int stages = ceil_div(call.k, 64);
    for (const MatmulKernel& kernel : kernels<MatmulKernel>()) {
        const bool layout = !call.b_rows || (call.finishes() ? kernel.finishes_b_rows : kernel.takes_b_rows);
        if (!layout || kernel.element != of || !runs_on(kernel.architecture, call.gpu.architecture) || call.k % kernel.k_multiple) continue;
        const long long tiles = static_cast<long long>(ceil_div(call.m, kernel.rows)) * ceil_div(call.n, kernel.columns);
        const float cost = kernel.launch + ceil_div(tiles, call.gpu.processors) * (kernel.tile + kernel.stage * stages);
        if (best == nullptr || cost < least) best = &kernel, least = cost;
    }
    return best;
}

// Does the copy engine read this matrix by rows `stride` elements apart?
bool readable(const Tensor& matrix, int64_t inner, int64_t stride) { return inner == 1 && stride > 0 && stride % 8 == 0 && on_16_bytes(matrix); }

bool run_matmul(const Tensor& a, const Tensor& b, const MaybeTensor& bias, int activation, const MaybeTensor& residual, Tensor& c) {
    if (a.dim() != 2 || b.dim() != 2 || !half_precision(a) || !alike(a, b) || activation < 0) return false;
    const int64_t m = a.size(0), k = a.size(1), n = b.size(1);
    if (b.size(0) != k || m == 0 || n == 0 || k == 0 || n % 8 || std::max({m, n, k}) > INT32_MAX) return false;
    const bool b_rows = b.stride(1) == 1 && (n > 1 || b.stride(0) != 1);
    if (!readable(a, a.stride(1), a.stride(0)) || !readable(b, b.stride(b_rows ? 1 : 0), b.stride(b_rows ? 0 : 1))) return false;
    if (bias && (bias->dim() != 1 || bias->size(0) != n || bias->stride(0) != 1 || !alike(*bias, a) || !on_16_bytes(*bias))) return false;
    if (residual && (residual->dim() != 2 || residual->size(0) != m || residual->size(1) != n || !alike(*residual, a) ||
                     !readable(*residual, residual->stride(1), residual->stride(0))))
        return false;

    const c10::cuda::CUDAGuard guard(a.device());
    MatmulCall call{gpu_of(a), a.data_ptr(), b.data_ptr(), bias ? bias->data_ptr() : nullptr, residual ? residual->data_ptr() : nullptr, nullptr,
                    static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), activation, a.stride(0), b.stride(b_rows ? 0 : 1),
                    residual ? residual->stride(0) : 0, b_rows};
    const MatmulKernel* kernel = best_kernel(call, element(a));
    if (kernel == nullptr) return false;
    c = at::empty({m, n}, a.options());
    call.c = c.data_ptr();
    kernel->run(call);
    return true;
}

Tensor matmul(const Tensor& a, const Tensor& b, const MaybeTensor& bias, std::optional<c10::string_view> activation, const MaybeTensor& residual) {
    Tensor c;
    if (run_matmul(a, b, bias, activation_number(activation), residual, c)) return c;
    static const auto other = find<decltype(matmul)>("labkernels::matmul_rawkernel");
    return other.call(a, b, bias, activation, residual);
}

Tensor matmul_autograd(const Tensor& a, const Tensor& b, const MaybeTensor& bias, std::optional<c10::string_view> activation,
                       const MaybeTensor& residual) {
    static const auto with_gradients = find<decltype(matmul)>("labkernels::matmul_autograd"), itself = find<decltype(matmul)>("labkernels::matmul");
    if (wants_gradient(a, b, bias, residual)) return with_gradients.call(a, b, bias, activation, residual);
    const at::AutoDispatchBelowADInplaceOrView below;
    return itself.call(a, b, bias, activation, residual);
}

// ---- attention

// Can the copy engine read it? Rows on 16 bytes, the last axis dense.
bool readable_heads(const Tensor& x) {
    if (x.dim() != 4 || x.stride(3) != 1 || x.size(3) % 8 || !on_16_bytes(x)) return false;
    for (int axis = 0; axis < 3; ++axis)
        if (x.size(axis) > 1 && (x.stride(axis) <= 0 || x.stride(axis) % 8)) return false;
    return true;
}

HeadTensor heads_of(const Tensor& x) { return {x.data_ptr(), {x.stride(0), x.stride(1), x.stride(2)}}; }

// What forward and backward have in common; false where these inputs are for the other variants.
bool describe(AttentionCall& call, const Tensor& q, const Tensor& k, const Tensor& v, bool causal, std::optional<double> scale, MaybeInt left,
              MaybeInt right, const MaybeTensor& mask) {
    if (mask || !half_precision(q) || !alike(q, k) || !alike(q, v) || !readable_heads(q) || !readable_heads(k) || !readable_heads(v)) return false;
    if (k.sizes() != v.sizes() || q.size(0) != k.size(0) || q.size(3) != k.size(3) || q.numel() == 0 || k.numel() == 0) return false;
    if (q.size(1) % k.size(1) || (scale && *scale <= 0) || left.value_or(0) < 0 || right.value_or(0) < 0) return false;
    // More heads of all batches than grid y has places, and repeated axes (stride 0), of which Python's
    // tensor_map makes a copy, are for Python's launchers.
    if (q.size(0) * q.size(1) > 65535 || std::max(q.size(2), k.size(2)) > kUnlimited) return false;
    const auto side = [](MaybeInt given) { return static_cast<int>(std::min<int64_t>(given.value_or(kUnlimited), kUnlimited)); };
    call.gpu = gpu_of(q);
    call.q = heads_of(q), call.k = heads_of(k), call.v = heads_of(v);
    call.batches = q.size(0), call.heads = q.size(1), call.kv_heads = k.size(1);
    call.seq_len = q.size(2), call.kv_len = k.size(2), call.head_dim = q.size(3);
    call.window_left = side(left), call.window_right = causal ? 0 : side(right);
    call.scale = scale ? *scale : 1.0 / std::sqrt(static_cast<double>(q.size(3)));
    return true;
}

// The kernel with the smallest head_dim that will do, and of two the one for short causal rows where these are.
const AttentionKernel* best_kernel(const AttentionCall& call, Element of, bool causal) {
    const AttentionKernel* best = nullptr;
    for (const AttentionKernel& kernel : kernels<AttentionKernel>()) {
        if (kernel.element != of || !runs_on(kernel.architecture, call.gpu.architecture) || kernel.head_dim < call.head_dim) continue;
        if (kernel.short_and_causal && !(causal && call.seq_len <= 512)) continue;
        const bool closer = best == nullptr || kernel.head_dim < best->head_dim;
        if (closer || (kernel.head_dim == best->head_dim && kernel.short_and_causal)) best = &kernel;
    }
    return best;
}

Attended attention(const Tensor& q, const Tensor& k, const Tensor& v, bool causal, std::optional<double> scale, MaybeInt left, MaybeInt right,
                   const MaybeTensor& mask) {
    AttentionCall call{};
    if (describe(call, q, k, v, causal, scale, left, right, mask)) {
        if (const AttentionKernel* kernel = best_kernel(call, element(q), causal)) {
            const c10::cuda::CUDAGuard guard(q.device());
            Tensor out = at::empty(q.sizes(), q.options());
            Tensor lse = at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat));
            call.out = heads_of(out), call.lse = lse.data_ptr<float>();
            kernel->run(call);
            return {std::move(out), std::move(lse)};
        }
    }
    static const auto other = find<decltype(attention)>("labkernels::attention_rawkernel");
    return other.call(q, k, v, causal, scale, left, right, mask);
}

Attended attention_autograd(const Tensor& q, const Tensor& k, const Tensor& v, bool causal, std::optional<double> scale, MaybeInt left, MaybeInt right,
                            const MaybeTensor& mask) {
    static const auto with_gradients = find<decltype(attention)>("labkernels::attention_autograd"),
                      itself = find<decltype(attention)>("labkernels::attention");
    if (wants_gradient(q, k, v, mask)) return with_gradients.call(q, k, v, causal, scale, left, right, mask);
    const at::AutoDispatchBelowADInplaceOrView below;
    return itself.call(q, k, v, causal, scale, left, right, mask);
}

const BackwardKernel* backward_kernel(const AttentionCall& call, Element of) {
    const BackwardKernel* best = nullptr;
    for (const BackwardKernel& kernel : kernels<BackwardKernel>())
        if (kernel.element == of && runs_on(kernel.architecture, call.gpu.architecture) && kernel.head_dim >= call.head_dim &&
            (best == nullptr || kernel.head_dim < best->head_dim))
            best = &kernel;
    return best;
}

Gradients attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse, bool causal,
                             std::optional<double> scale, MaybeInt left, MaybeInt right, const MaybeTensor& mask) {
    BackwardCall call{};
    AttentionCall& of = call.forward;
    const bool described = describe(of, q, k, v, causal, scale, left, right, mask) && readable_heads(grad) && readable_heads(out) && alike(grad, q) &&
                           alike(out, q) && grad.sizes() == q.sizes() && out.sizes() == q.sizes() && lse.is_contiguous() &&
                           lse.scalar_type() == at::kFloat && lse.device() == q.device() && lse.sizes() == q.sizes().slice(0, 3);
    if (described) {
        if (const BackwardKernel* kernel = backward_kernel(of, element(q))) {
            const c10::cuda::CUDAGuard guard(q.device());
            const auto floats = q.options().dtype(at::kFloat);
            const int64_t tiles = int64_t{of.batches} * of.heads * ceil_div(of.seq_len, kernel->block_q), rows = tiles * kernel->block_q;
            Tensor grad_q = at::empty(q.sizes(), q.options()), grad_k = at::empty(k.sizes(), k.options()), grad_v = at::empty(v.sizes(), v.options());
            Tensor row_values = at::empty({2 * rows}, floats), sums = at::zeros({rows * kernel->head_dim}, floats), turns;
            if (at::globalContext().deterministicAlgorithms()) turns = at::zeros({2 * tiles}, q.options().dtype(at::kInt));
            of.out = heads_of(out), of.lse = lse.data_ptr<float>();
            call.grad = heads_of(grad), call.grad_q = heads_of(grad_q), call.grad_k = heads_of(grad_k), call.grad_v = heads_of(grad_v);
            call.row_values = row_values.data_ptr<float>(), call.sums = sums.data_ptr<float>();
            call.turns = turns.defined() ? turns.data_ptr<int>() : nullptr;
            kernel->run(call);
            return {std::move(grad_q), std::move(grad_k), std::move(grad_v)};
        }
    }
    static const auto other = find<decltype(attention_backward)>("labkernels::attention_backward_rawkernel");
    return other.call(grad, q, k, v, out, lse, causal, scale, left, right, mask);
}

// Where a gradient of these gradients is wanted Python refuses.
Gradients attention_backward_autograd(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                                      bool causal, std::optional<double> scale, MaybeInt left, MaybeInt right, const MaybeTensor& mask) {
    static const auto refused = find<decltype(attention_backward)>("labkernels::attention_backward_autograd"),
                      itself = find<decltype(attention_backward)>("labkernels::attention_backward");
    if (wants_gradient(grad, q, k, v, out)) return refused.call(grad, q, k, v, out, lse, causal, scale, left, right, mask);
    const at::AutoDispatchBelowADInplaceOrView below;
    return itself.call(grad, q, k, v, out, lse, causal, scale, left, right, mask);
}

}  // namespace
}  // namespace labkernels

// Called once, when Python's own kernels have made room: see build.py.
extern "C" __attribute__((visibility("default"))) void labkernels_register() {
    using torch::Library;
    static Library cuda(Library::IMPL, "labkernels", std::make_optional(c10::DispatchKey::CUDA), __FILE__, __LINE__);
    cuda.impl("matmul", &labkernels::matmul);
    cuda.impl("matmul_autograd", &labkernels::matmul);
    cuda.impl("attention", &labkernels::attention);
    cuda.impl("attention_autograd", &labkernels::attention);
    cuda.impl("attention_backward", &labkernels::attention_backward);
    cuda.impl("attention_backward_autograd", &labkernels::attention_backward);
    static Library autograd(Library::IMPL, "labkernels", std::make_optional(c10::DispatchKey::AutogradCUDA), __FILE__, __LINE__);
    autograd.impl("matmul", &labkernels::matmul_autograd);
    autograd.impl("attention", &labkernels::attention_autograd);
    autograd.impl("attention_backward", &labkernels::attention_backward_autograd);
}
