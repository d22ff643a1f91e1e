"""The C++ extension: what can be tested without a GPU, and on one the operators with both backends.

On a GPU, `pytest -m gpu -s tests/torch_extension/test_extension.py` builds the extension first and prints what a call costs the host.
"""

import shutil
import subprocess
import time

import pytest
import torch

import labkernels as lk
from labkernels.attention_backward import hopper as backward_hopper
from labkernels.errors import ToolchainError
from labkernels.matmul import hopper as matmul_hopper
from labkernels.torch_extension import backend, build
from labkernels.torch_extension.units import CSRC, sources, units

ops = torch.ops.labkernels


@pytest.fixture
def nvcc():
    try:
        return build.find_toolkit() / "bin" / "nvcc"
    except ToolchainError:
        pytest.skip("needs nvcc")


def test_units_hold_the_configurations_of_the_python_launchers():
    hopper, ampere = units(90), units(80)
    largest = next(iter(matmul_hopper.COSTS))
    assert f"HopperMatmul<__half, {largest.rows}, {largest.columns}, {largest.consumers}, {largest.stages}, " in hopper["matmul_128x256_fp16"]
    assert "HopperAttention<__half, 64, 3, 128, 2, 2>" in hopper["attention_64_fp16"]
    assert f"HopperBackward<__nv_bfloat16, 128, 64, {backward_hopper.shared_mem(128)}>" in hopper["backward_128_bf16"]
    assert "Tiling<64, " in ampere["attention_64_bf16"] and not any("Hopper" in text for text in ampere.values())


def test_the_sources_are_the_operations_own_files():
    names = {path.name for path in sources()}
    assert {"v7_hopper.cu", "v6_hopper.cu", "v3_hopper.cu", "v5_tensor_cores.cu", "operators.cpp", "tma.cuh"} <= names


@pytest.mark.parametrize("arch, unit", [(90, "backward_64_bf16"), (90, "attention_128_fp16"), (80, "attention_64_bf16")])
def test_nvcc_takes_a_unit(arch, unit, nvcc, tmp_path):
    """As far as PTX; whole builds are for machines with a GPU."""
    file = tmp_path / f"{unit}.cu"
    file.write_text(units(arch)[unit])
    flags = [*build.NVCC_FLAGS, "-std=c++17", build.arch_flag(arch), f"-I{CSRC}", f"-I{build.INCLUDE_DIR}", "-w"]
    done = subprocess.run([nvcc, *flags, "-ptx", file, "-o", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ToolchainError, match="torch sees none here; CPU tensors run in the emulator"):
        lk.torch_extension.load()
    assert backend() == "rawkernel"


def test_without_nvcc_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(build.Path, "exists", lambda path: False)
    monkeypatch.setattr(build.Path, "glob", lambda path, pattern: [])
    with pytest.raises(ToolchainError, match="nvcc, which is missing. Install NVIDIA's CUDA toolkit .* CUDA_HOME"):
        build.build(90)


def test_without_ninja_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "find_toolkit", lambda: tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(ToolchainError, match="pip install ninja"):
        build.build(90)


# ---- on a GPU


@pytest.fixture(scope="module")
def extension():
    start = time.perf_counter()
    lk.torch_extension.load()
    print(f"\nextension ready in {time.perf_counter() - start:.0f} s")
    assert backend() == "cpp"


def normal(*shape, dtype=torch.bfloat16, grad=True):
    return torch.randn(shape, device="cuda").to(dtype).requires_grad_(grad)


def attention_inputs(seq_len=300, heads=4, kv_heads=2, head_dim=128, dtype=torch.bfloat16, grad=True, batch=2):
    torch.manual_seed(0)
    projected = torch.randn(batch, seq_len, heads + 2 * kv_heads, head_dim, device="cuda").to(dtype).transpose(1, 2)
    return tuple(x.detach().requires_grad_(grad) for x in projected.split([heads, kv_heads, kv_heads], dim=1))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_opcheck(extension, dtype):
    q, k, v = attention_inputs(33, head_dim=64, dtype=dtype)
    torch.library.opcheck(ops.attention.default, (q, k, v, True))
    torch.library.opcheck(ops.attention.default, (q, k, v, False, 0.2, 5, 3, torch.rand(33, 33, device="cuda") > 0.2))
    a, weight, bias, residual = normal(40, 64, dtype=dtype), normal(72, 64, dtype=dtype), normal(72, dtype=dtype), normal(40, 72, dtype=dtype)
    torch.library.opcheck(ops.matmul.default, (a, weight.t(), bias, "gelu", residual))
    out, lse = ops.attention(q, k, v)
    given = tuple(x.detach() for x in (torch.randn_like(out), q, k, v, out, lse))
    torch.library.opcheck(ops.attention_backward.default, given)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [(), (True,), (False, 0.1, 40, 7), (True, None, 64, None)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_both_backends_compute_the_same_attention(extension, options, head_dim, dtype):
    q, k, v = attention_inputs(head_dim=head_dim, dtype=dtype, grad=False)
    got, want = ops.attention(q, k, v, *options), ops.attention_rawkernel(q, k, v, *options)
    assert want[0].abs().max() > 0.1
    torch.testing.assert_close(got, want, rtol=0, atol=2**-7)
    grad = torch.randn_like(got[0])
    got, want = (each(grad, q, k, v, *want, *options) for each in (ops.attention_backward, ops.attention_backward_rawkernel))
    for got_grad, want_grad in zip(got, want):
        torch.testing.assert_close(got_grad, want_grad, rtol=0, atol=2**-6 * float(want_grad.abs().max()))


@pytest.mark.gpu
def test_deterministic_gradients_are_the_same_bits_each_time(extension):
    q, k, v = attention_inputs(700, grad=False)
    out, lse = ops.attention(q, k, v, True)
    grad = torch.randn_like(out)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (ops.attention_backward(grad, q, k, v, out, lse, True) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(first, second))


@pytest.mark.gpu
@pytest.mark.parametrize("m, n, k", [(300, 200, 136), (1024, 1024, 512), (64, 4096, 256)])
@pytest.mark.parametrize("layout", ["rows", "weight"])
@pytest.mark.parametrize("epilogue", ["none", "bias", "relu", "gelu", "gelu_tanh", "silu"])
def test_both_backends_compute_the_same_matmul(extension, m, n, k, layout, epilogue):
    torch.manual_seed(0)
    a, b = normal(m, k, grad=False), normal(n, k, grad=False).t() if layout == "weight" else normal(k, n, grad=False)
    others = (None, None, None) if epilogue == "none" else (normal(n, grad=False), None if epilogue == "bias" else epilogue, normal(m, n, grad=False))
    got, want = ops.matmul(a, b, *others), ops.matmul_rawkernel(a, b, *others)
    assert want.abs().max() > 1
    torch.testing.assert_close(got, want, rtol=2**-7, atol=2**-5)


@pytest.mark.gpu
def test_what_the_extension_has_no_kernel_for_is_computed_all_the_same(extension):
    q, k, v = attention_inputs(33, head_dim=64, dtype=torch.float32, grad=False)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(ops.attention(q, k, v)[0], want, rtol=1e-4, atol=1e-4)
    mask = torch.rand(33, 33, device="cuda") > 0.3
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(ops.attention(q.half(), k.half(), v.half(), mask=mask)[0].float(), want, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="attention: k has head_dim 32, q has 64"):
        ops.attention(q, k[..., :32], v[..., :32])


def layer_and_input(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return lk.nn.FlashAttention(512, 8, 2, bias=True, device="cuda", dtype=dtype), normal(2, 300, 512, dtype=dtype)


@pytest.mark.gpu
def test_torch_compile_takes_a_layer_whole(extension):
    layer, x = layer_and_input()
    got, want = torch.compile(layer, fullgraph=True)(x), layer(x)
    torch.testing.assert_close(got, want, rtol=2**-6, atol=2**-6)
    inputs = [x, *layer.parameters()]
    for got_grad, want_grad in zip(*(torch.autograd.grad(result.float().square().sum(), inputs) for result in (got, want))):
        torch.testing.assert_close(got_grad, want_grad, rtol=0, atol=0.03 * float(want_grad.abs().max()))


@pytest.mark.gpu
def test_gradients_are_pytorchs(extension):
    q, k, v = attention_inputs()
    weight = torch.randn(q.shape, device="cuda")
    by_sdpa = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    by_us = lk.functional.attention(q, k, v, causal=True)
    for got, want in zip(*(torch.autograd.grad((result * weight).sum(), (q, k, v)) for result in (by_us, by_sdpa))):
        torch.testing.assert_close(got, want, rtol=0, atol=0.02 * float(want.abs().max()))


@pytest.mark.gpu
def test_a_cuda_graph_replays_a_layer_and_its_gradients(extension):
    layer, x = layer_and_input()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is set up at the first call must not be captured
        for _ in range(3):
            layer(x).float().square().sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    layer.zero_grad()
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
        y.float().square().sum().backward()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    got = y.clone(), x.grad.clone()
    x.grad = None
    want = layer(x)
    want.float().square().sum().backward()
    torch.testing.assert_close(got[0], want, rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(got[1], x.grad, rtol=0, atol=0.03 * float(x.grad.abs().max()))


@pytest.mark.gpu
def test_autocast(extension):
    layer, x = layer_and_input(torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad.dtype == torch.float32


def host_time_us(call, calls=200) -> float:
    """What a call takes the host, without waiting for the GPU. Inputs are small, so that the queue of launches does not fill up."""
    for _ in range(20):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return elapsed / calls * 1e6


@pytest.mark.gpu
def test_a_call_from_cpp_costs_the_host_less(extension):
    q, k, v = attention_inputs(64, grad=False)
    a, b = normal(64, 64, grad=False), normal(64, 64, grad=False).t()
    out, lse = ops.attention(q, k, v)
    grad, backward = torch.randn_like(out), (q, k, v, out, lse)
    print(f"\n{'host time a call, us':24}{'C++':>8}{'Python':>8}")
    with torch.no_grad():
        calls = {
            "matmul": (lambda: ops.matmul(a, b), lambda: ops.matmul_rawkernel(a, b)),
            "attention": (lambda: ops.attention(q, k, v), lambda: ops.attention_rawkernel(q, k, v)),
            "attention_backward": (lambda: ops.attention_backward(grad, *backward), lambda: ops.attention_backward_rawkernel(grad, *backward)),
            "functional.attention": (lambda: lk.functional.attention(q, k, v), lambda: lk.ops["attention"].run(q=q, k=k, v=v)),
        }
        for name, (cpp, python) in calls.items():
            times = host_time_us(cpp), host_time_us(python)
            print(f"{name:24}{times[0]:8.1f}{times[1]:8.1f}")
            assert times[0] < times[1]
