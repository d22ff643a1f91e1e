"""torch.ops.labkernels.*: what torch.library asks of an operator, gradients, autocast and torch.compile, on the CPU through the emulator."""

import pytest
import torch

import labkernels as lk
from labkernels.attention.reference import reference as attention_reference
from labkernels.errors import ArgumentError
from labkernels.matmul.reference import ACTIVATIONS
from labkernels.matmul.reference import reference as matmul_reference
from labkernels.torch_extension import backend

ops = torch.ops.labkernels


def normal(*shape, dtype=torch.float32, grad=True):
    return torch.randn(shape).to(dtype).requires_grad_(grad)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_gradients(got, want, tensors, dtype):
    """The gradients of `got` are those of `want`, which was computed in float64."""
    weight = torch.randn(got.shape)
    got_grads = torch.autograd.grad((got * weight).sum(), tensors)
    want_grads = torch.autograd.grad((want * weight.double()).sum(), tensors)
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    for got_grad, want_grad in zip(got_grads, want_grads):
        assert want_grad.abs().max() > 0 and got_grad.dtype == dtype
        torch.testing.assert_close(got_grad.double(), want_grad.double(), rtol=tolerance, atol=tolerance * float(want_grad.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_matmul(dtype):
    a, b, bias, residual = (normal(*shape, dtype=dtype) for shape in ((9, 16), (16, 24), (24,), (9, 24)))
    torch.library.opcheck(ops.matmul.default, (a, b, bias, "gelu", residual))
    torch.library.opcheck(ops.matmul.default, (a.t()[:8], normal(9, 24, dtype=dtype), None, None, normal(24, 8, dtype=dtype).t()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_attention(dtype):
    q, k, v = normal(1, 2, 5, 16, dtype=dtype), normal(1, 1, 7, 16, dtype=dtype), normal(1, 1, 7, 16, dtype=dtype)
    torch.library.opcheck(ops.attention.default, (q, k, v, True))
    torch.library.opcheck(ops.attention.default, (q, k.mT.contiguous().mT, v, False, 0.5, 3, 1, torch.rand(5, 7) > 0.3))


def test_opcheck_of_the_backward():
    q, k, v = (normal(1, heads, 6, 16, grad=False) for heads in (2, 1, 1))
    out, lse = ops.attention(q, k, v)
    torch.library.opcheck(ops.attention_backward.default, (torch.randn_like(out), q, k, v, out, lse))


def scaled_inputs():
    a, weight = (torch.randn(shape).to(torch.float8_e4m3fn) for shape in ((9, 32), (16, 32)))
    return a, weight.t(), torch.rand(9, 1) + 0.5, torch.rand(1, 16) + 0.5, torch.randn(16).bfloat16()


def test_opcheck_of_scaled_matmul():
    """But for test_schema, which asks PyTorch whether two float8 tensors are close, and PyTorch cannot say."""
    utilities = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.scaled_matmul.default, scaled_inputs(), test_utils=utilities)


def test_torch_compile_takes_scaled_matmul_whole():
    inputs = scaled_inputs()
    compiled = torch.compile(lambda *given: lk.functional.scaled_matmul(*given) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), lk.functional.scaled_matmul(*inputs) * 2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_matmul(activation):
    a, weight, bias, residual = normal(9, 16), normal(24, 16), normal(24), normal(9, 24)
    got = lk.functional.matmul(a, weight.t(), bias, activation, residual)
    want = matmul_reference(*(x.double() for x in (a, weight.t(), bias)), activation, residual.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)
    assert_gradients(got, want, (a, weight, bias, residual), torch.float32)


def test_gradients_of_matmul_in_bfloat16_on_tensor_cores():
    a, b = normal(16, 24, dtype=torch.bfloat16), normal(24, 8, dtype=torch.bfloat16)
    assert_gradients(lk.functional.matmul(a, b), a.double() @ b.double(), (a, b), torch.bfloat16)


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"window": (2, 1)}, {"mask": torch.arange(63).reshape(9, 7) % 5 > 0}, {"causal": True, "scale": -0.3}],
    ids=["full", "causal", "window", "mask", "negative scale"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_of_attention(options, dtype):
    """Nine queries and seven keys: causal, the first two see nothing."""
    q, k, v = normal(2, 4, 9, 24, dtype=dtype), normal(2, 2, 7, 24, dtype=dtype), normal(2, 2, 7, 24, dtype=dtype)
    want = attention_reference(*(x.double() for x in (q, k, v)), **options)
    assert_gradients(lk.functional.attention(q, k, v, **options), want.nan_to_num(), (q, k, v), dtype)


def test_a_gradient_that_is_one_number_repeated():
    """.sum() hands down an expanded gradient, whose rows no kernel could read in place."""
    q, k, v = (normal(1, 1, 6, 16) for _ in range(3))
    lk.functional.attention(q, k, v).sum().backward()
    torch.testing.assert_close(v.grad.sum(2), torch.full((1, 1, 16), 6.0))
    a, b = normal(5, 6), normal(6, 7)
    lk.functional.matmul(a, b).sum().backward()
    torch.testing.assert_close(a.grad, b.detach().sum(1).expand(5, 6))


def test_empty_inputs_have_empty_gradients():
    q, k, v = normal(1, 2, 4, 16), normal(1, 2, 0, 16), normal(1, 2, 0, 16)
    lk.functional.attention(q, k, v).sum().backward()
    assert q.grad.eq(0).all() and k.grad.shape == k.shape


def test_lse_carries_no_gradient_and_a_mask_that_wants_one_is_refused():
    q = normal(1, 1, 4, 16)
    out, lse = lk.functional.attention(q, q, q, return_lse=True)
    assert out.requires_grad and not lse.requires_grad
    with pytest.raises(ArgumentError, match="mask requires a gradient"):
        lk.functional.attention(q, q, q, mask=torch.zeros(4, 4, requires_grad=True))


def test_autocast_computes_in_its_dtype_and_gives_gradients_in_theirs():
    q, a = normal(1, 1, 4, 16), normal(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = lk.functional.attention(q, q, q, mask=torch.zeros(4, 4))
        product = lk.functional.matmul(a, a.t(), activation="relu")
    assert out.dtype == product.dtype == torch.bfloat16
    (out.sum() + product.sum()).backward()
    assert q.grad.dtype == a.grad.dtype == torch.float32 and q.grad.abs().max() > 0


def test_torch_compile_takes_them_whole():
    def both(q, k, v, weight):
        out = lk.functional.attention(q, k, v, causal=True, window=(3, None))
        return lk.functional.matmul(out[0, 0], weight, activation="silu") * 2

    q, k, v, weight = normal(1, 1, 6, 16), normal(1, 1, 6, 16), normal(1, 1, 6, 16), normal(16, 8)
    want, got = both(q, k, v, weight), torch.compile(both, fullgraph=True, backend="aot_eager")(q, k, v, weight)
    torch.testing.assert_close(got, want)
    for got_grad, want_grad in zip(*(torch.autograd.grad(result.square().sum(), (q, k, v, weight)) for result in (got, want))):
        torch.testing.assert_close(got_grad, want_grad)


def test_wrong_inputs_are_named():
    with pytest.raises(ArgumentError, match="attention: k has head_dim 8, q has 16; both must be equal"):
        lk.functional.attention(normal(1, 1, 4, 16), torch.ones(1, 1, 4, 8), torch.ones(1, 1, 4, 8))
    with pytest.raises(ArgumentError, match=r"attention: window is \(1.5, None\)"):
        lk.functional.attention(*[normal(1, 1, 4, 16)] * 3, window=(1.5, None))
    with pytest.raises(ArgumentError, match="matmul: b has 5 rows, a has 4 columns"):
        lk.functional.matmul(normal(3, 4), normal(5, 6))
    q = torch.ones(1, 1, 4, 16)
    with pytest.raises(ArgumentError, match=r"attention_backward: grad_out has shape \(1, 1, 3, 16\); it must be \(1, 1, 4, 16\)"):
        ops.attention_backward(torch.ones(1, 1, 3, 16), q, q, q, q, torch.ones(1, 1, 4))


def test_kernels_are_launched_from_python_until_the_extension_is_loaded():
    assert backend() == "rawkernel"
