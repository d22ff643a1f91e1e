"""The operation `matmul`: its reference, its costs, its refusals, and the mistakes that the checker recognises by name."""

import math

import pytest
import torch
import torch.nn.functional as F

from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.matmul import matmul
from labkernels.matmul.launch import activation_number
from labkernels.matmul.op import LINEARS, OP, shape
from labkernels.matmul.peers import native
from labkernels.matmul.reference import ACTIVATIONS, finish, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPSILON = torch.finfo(torch.float32).eps


def inputs(dtype=torch.float32, device="cpu", seed=0, **sizes):
    return OP.make_inputs(torch.Generator().manual_seed(seed), device, dtype, **shape(**sizes))


def test_reference_is_a_linear_layer_with_what_follows_it():
    torch.manual_seed(0)
    linear = torch.nn.Linear(20, 7, dtype=torch.float64)
    x, residual = torch.randn(5, 20, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    want = F.gelu(linear(x)) + residual
    torch.testing.assert_close(reference(x, linear.weight.t(), linear.bias, "gelu", residual), want)
    torch.testing.assert_close(native(x, linear.weight.t(), linear.bias, "gelu", residual), want)


def test_activations_are_what_their_names_say():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    erf, sigmoid = torch.erf(x / math.sqrt(2)), 1 / (1 + torch.exp(-x))
    tanh = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    want = {None: x, "relu": x * (x > 0), "gelu": x * (1 + erf) / 2, "gelu_tanh": x * (1 + tanh) / 2, "silu": x * sigmoid}
    assert list(ACTIVATIONS) == list(want) and [activation_number(name) for name in want] == [0, 1, 2, 3, 4]
    for name, values in want.items():
        torch.testing.assert_close(ACTIVATIONS[name](x), values)


@pytest.mark.parametrize("epilogue", ["none", "bias", "residual", "bias+residual", "silu", "bias+gelu_tanh+residual", "relu+residual"])
def test_pytorchs_own_computes_the_same(epilogue):
    case = inputs(m=9, n=11, k=5, epilogue=epilogue)
    torch.testing.assert_close(native(**case), reference(**case))


def test_native_leaves_the_choice_of_tf32_as_it_was():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for choice in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = choice
            native(**inputs(m=3))
            assert torch.backends.cuda.matmul.allow_tf32 == choice
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_layouts_are_what_they_promise():
    strides = {name: inputs(m=8, n=12, k=16, layout=name) for name in ("rows", "weight", "slices", "odd", "odd_weight")}
    assert strides["rows"]["b"].is_contiguous() and strides["weight"]["b"].t().is_contiguous()
    assert strides["slices"]["a"].stride() == (32, 1) and strides["slices"]["b"].data_ptr() % 16 == 0
    assert strides["odd"]["a"].stride() == (19, 1) and strides["odd"]["a"].data_ptr() % 16 == 4
    assert strides["odd_weight"]["b"].stride() == (1, 19)
    for case in strides.values():
        assert case["a"].shape == (8, 16) and case["b"].shape == (16, 12) and case["bias"] is case["residual"] is case["activation"] is None


def test_costs_are_worked_out_from_the_inputs_themselves():
    case = inputs(torch.bfloat16, m=6, n=10, k=4, epilogue="bias+relu+residual")
    tensors = [value for value in case.values() if isinstance(value, torch.Tensor)]
    sizes = shape(6, 10, 4, epilogue="bias+relu+residual")
    assert OP.bytes_moved(torch.bfloat16, **sizes) == sum(t.nbytes for t in tensors) + native(**case).nbytes
    assert OP.flops(**sizes) == 2 * 6 * 10 * 4


def test_sweeps_are_square_or_a_models_linear_layer():
    assert OP.complete_shape(torch.float32, m=512) == shape(512, 512, 512)
    layers = [sweep for sweep in OP.record_sweeps if sweep.get("n")]
    assert [(sweep["n"][0], sweep["k"][0]) for sweep in layers] == list(LINEARS)
    assert all(sweep["layout"] == ["weight"] and sweep["m"] == [512, 2048, 8192] for sweep in layers)
    llama_7b = {"qkv": (3 * 4096, 4096), "out": (4096, 4096), "gate_up": (2 * 11008, 4096), "down": (4096, 11008)}
    assert set(llama_7b.values()) <= set(LINEARS)


@pytest.mark.parametrize("k", [1, 33, 4096])
def test_tolerance_admits_a_naive_sum_and_not_tf32(k):
    """One float32 after the other passes; factors rounded to the 10 bits of tf32 do not."""
    torch.manual_seed(k)
    a, b = torch.randn(64, k), torch.randn(k, 64)
    want, allowed = a.double() @ b.double(), OP.tolerance(torch.float32, **shape(64, 64, k))
    limit = allowed.absolute + allowed.relative * want.abs()
    total = torch.zeros(64, 64)
    for i in range(k):
        total += a[:, i, None] * b[i]
    assert ((total.double() - want).abs() < limit).all()
    rounded = [((m.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) for m in (a, b)]
    assert not ((rounded[0].double() @ rounded[1].double() - want).abs() < limit).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"a": torch.ones(3)}, r"a has shape \(3,\); it must have two axes, \(m, k\)"),
        ({"b": torch.ones(1, 5, 4)}, r"b has shape \(1, 5, 4\); it must have two axes, \(k, n\)"),
        ({"b": torch.ones(6, 4)}, "b has 6 rows, a has 5 columns; both must be equal"),
        ({"bias": torch.ones(1, 4)}, r"bias has shape \(1, 4\); it must have one axis, \(n,\)"),
        ({"bias": torch.ones(3)}, "bias has 3 elements, b has 4 columns; both must be equal"),
        ({"residual": torch.ones(4, 4)}, r"residual has shape \(4, 4\), the result has \(3, 4\); both must be equal"),
        ({"activation": "swish"}, "activation is 'swish'; it must be one of None, 'relu', 'gelu', 'gelu_tanh', 'silu'"),
        ({"a": torch.ones(3, 5).double()}, "a is float64; it must be float32, bfloat16 or float16"),
        ({"b": torch.ones(5, 4).half()}, "b is float16, a is float32; both must be equal"),
        ({"residual": torch.ones(3, 4).bfloat16()}, "residual is bfloat16, a is float32; both must be equal"),
        ({"bias": torch.ones(4, device="meta")}, "bias is on meta, a is on cpu; both must be on one device"),
        ({"a": torch.ones(5, 3).t()}, r"a has strides \(1, 3\); the rows of a must be dense in memory"),
        ({"b": torch.ones(10, 8)[::2, ::2]}, r"b has strides \(16, 2\); the rows or the columns of b must be dense in memory"),
        ({"residual": torch.ones(4, 3).t()}, r"residual has strides \(1, 3\); the rows of residual must be dense"),
        ({"bias": torch.ones(8)[::2]}, r"bias has strides \(2,\); the elements of bias must be dense"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    with pytest.raises(ArgumentError, match=f"matmul: {message}"):
        matmul(**{"a": torch.ones(3, 5), "b": torch.ones(5, 4), **change})


def test_odd_strides_of_a_single_row_or_column_do_not_matter():
    x, y = torch.randn(5, 3, device=DEVICE), torch.randn(4, 5, device=DEVICE)
    torch.testing.assert_close(matmul(x[:, :1], x.t()[:1]), x[:, :1] @ x.t()[:1])
    torch.testing.assert_close(matmul(x.t().contiguous()[1:2], x[:, 1:2]), x.t()[1:2] @ x[:, 1:2])
    torch.testing.assert_close(matmul(y, x[:, 2:3]), y @ x[:, 2:3])


@pytest.mark.parametrize("m, n, k", [(0, 4, 3), (4, 0, 3), (0, 0, 0)])
def test_an_empty_result_is_empty(m, n, k):
    result = matmul(torch.ones(m, k, device=DEVICE), torch.ones(k, n, device=DEVICE))
    assert result.shape == (m, n) and result.device.type == DEVICE


def test_without_terms_the_sum_is_zero_and_the_epilogue_goes_on():
    bias, residual = torch.randn(4, device=DEVICE), torch.randn(3, 4, device=DEVICE)
    a, b = torch.ones(3, 0, device=DEVICE), torch.ones(0, 4, device=DEVICE)
    assert matmul(a, b).eq(0).all()
    torch.testing.assert_close(matmul(a, b, bias, "silu", residual), F.silu(bias) + residual)


def as_if_by_rows(a, b, **epilogue):
    """Reads the memory of b, dense by columns, as if it were dense by rows."""
    b = b if b.is_contiguous() else b.t().contiguous().reshape(b.shape)
    return reference(a, b, **epilogue)


def whole_tiles_only(a, b, **epilogue):
    k = a.shape[1] // 32 * 32 or a.shape[1]
    return reference(a[:, :k], b[:k], **epilogue)


def last_tile_only(a, b, **epilogue):
    first = max(a.shape[1] - 1, 0) // 16 * 16
    return reference(a[:, first:], b[first:], **epilogue)


def bias_after(a, b, bias, activation, residual):
    result = finish(a @ b, None, activation, residual)
    return result if bias is None else result + bias


def bias_of_the_row(a, b, bias, activation, residual):
    return finish(a @ b, None if bias is None else bias[: len(a), None], activation, residual)


def residual_before(a, b, bias, activation, residual):
    product = finish(a @ b, bias, None, residual)
    return finish(product, None, activation)


def by_columns(a, b, **epilogue):
    result = reference(a, b, **epilogue)
    return result.t().reshape(result.shape)


@pytest.mark.parametrize(
    "wrong, cases, hint",
    [
        (as_if_by_rows, {"layout": "weight"}, r"b read as if it were contiguous: rows and columns are as far apart as the strides say"),
        (lambda a, b, **epilogue: reference(a, b.t(), **epilogue), {"m": 66}, "a times b transposed"),
        (by_columns, {"m": 66}, "written column by column: c[row, col] belongs at row * n + col"),
        (whole_tiles_only, {"k": 48, "layout": "rows"}, "without the last 16 of 48 columns of a: a partial tile must be multiplied too"),
        (last_tile_only, {"k": 300}, "columns 288 to 299 of a only: the sum must not begin anew with each tile of"),
        (lambda a, b, bias, **epilogue: reference(a, b, **epilogue), {"epilogue": "bias+gelu"}, "without the bias"),
        (bias_of_the_row, {"epilogue": "bias"}, "the bias of the row, not of the column"),
        (bias_after, {"epilogue": "bias+silu+residual"}, "the bias added after the activation"),
        (residual_before, {"epilogue": "relu+residual"}, "the residual added before the activation"),
        (lambda a, b, activation, **epilogue: reference(a, b, **epilogue), {"epilogue": "gelu_tanh"}, "without the activation"),
    ],
)
def test_classic_mistakes_are_recognised(wrong, cases, hint):
    with pytest.raises(CheckFailed) as raised:
        check("matmul", lambda a, b, **epilogue: wrong(a, b, **epilogue), dtypes=["float32"], seeds=(0,), quiet=True, **cases)
    assert raised.value.reason == "mismatch"
    assert hint in (raised.value.hint or "no hint"), str(raised.value)


def test_gelu_by_tanh_is_not_gelu_by_erf():
    def confused(a, b, bias=None, activation=None, residual=None):
        return reference(a, b, bias, {"gelu": "gelu_tanh"}.get(activation, activation), residual)

    with pytest.raises(CheckFailed) as raised:
        check("matmul", confused, dtypes=["float32"], seeds=(0,), quiet=True)
    assert raised.value.hint == "Your result is the right thing with the activation gelu_tanh instead of gelu.", str(raised.value)


def test_an_unknown_mistake_gets_no_hint():
    with pytest.raises(CheckFailed) as raised:
        check("matmul", lambda *tensors, **epilogue: reference(*tensors, **epilogue) * 1.1, quiet=True)
    assert raised.value.reason == "mismatch" and raised.value.hint is None


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", ["bias", "bias+gelu", "gelu_tanh+residual", "bias+silu+residual"])
@pytest.mark.parametrize("name", OP.peers)
def test_peers_compute_the_same(name, epilogue):
    case = inputs(torch.bfloat16, "cuda", m=100, n=64, k=300, layout="weight", epilogue=epilogue)
    want = reference(**{key: value.double() if isinstance(value, torch.Tensor) else value for key, value in case.items()})
    torch.testing.assert_close(OP.peers[name].fn(**case).double(), want, rtol=2**-6, atol=0.2)


def test_peers_say_what_they_refuse():
    plain, activated = inputs(m=4), inputs(m=4, epilogue="silu")
    assert OP.peers["cublas"].accepts(**plain) == OP.peers["torch_compile"].accepts(**activated) == "needs a GPU"
    assert OP.peers["torch_compile"].accepts(**plain) == "the product alone is cuBLAS: nothing to fuse"
