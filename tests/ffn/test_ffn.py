"""`ffn` and `ffn_backward`: every version right in the emulator; the public functions, the layer and the torch operators."""

import pytest
import torch
import torch.nn.functional as F

import labkernels as lk
from labkernels.errors import ArgumentError
from labkernels.ffn import ffn, ffn_backward, ffn_fp8
from labkernels.ffn.fp8 import fp8_rows
from labkernels.ffn.reference import activate, backward_reference, reference
from labkernels.lab.check import check
from labkernels.nn import FusedFFN
from labkernels.operation import Variant

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ACTIVATIONS = ["gelu", "gelu_tanh", "swiglu"]


def network(tokens=5, embed=24, ffn=16, activation="gelu", dtype=torch.float32, device="cpu", bias=True):
    generator = torch.Generator().manual_seed(tokens)
    rows = 2 * ffn if activation == "swiglu" else ffn
    sizes = (tokens, embed), (rows, embed), (embed, ffn), *(((rows,), (embed,)) if bias else ())
    tensors = [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]
    return tensors + [None, None] * (not bias)


@pytest.mark.parametrize("name", lk.ops["ffn"].variants)
def test_every_version_passes_the_check(name):
    assert check("ffn", name, seeds=(0,), quiet=True).sanitizer == "clean"


@pytest.mark.parametrize("name", lk.ops["ffn_backward"].variants)
def test_every_version_of_the_gradients_passes_the_check(name):
    assert check("ffn_backward", name, seeds=(0,), dtypes=["float32", "bfloat16"], quiet=True).sanitizer == "clean"


def test_fp8_passes_the_check():
    assert check("ffn_fp8", "v1_quantised_rows", seeds=(0,), quiet=True).sanitizer == "clean"


def _swapped(x, w1, w2, b1=None, b2=None, activation="gelu"):
    """Gate and up exchanged, where there are any."""
    if activation == "swiglu":
        w1, b1 = (t if t is None else torch.cat(t.chunk(2)[::-1]) for t in (w1, b1))
    return reference(x, w1, w2, b1, b2, activation)


def test_exchanged_gates_are_named():
    with pytest.raises(Exception, match="gate and up exchanged"):
        check("ffn", Variant("swapped", _swapped, "wrong"), dtypes=["float32"], seeds=(0,), quiet=True)


def test_a_slope_left_out_is_named():
    def flat(grad_out, x, pre, w1, w2, activation="gelu", bias=False):
        dh = grad_out @ w2
        dpre = torch.cat([dh, dh], 1) if activation == "swiglu" else dh
        return dpre @ w1, dpre.t() @ x, grad_out.t() @ activate(pre, activation), dpre.sum(0), grad_out.sum(0)

    with pytest.raises(Exception, match="slope of the activation left out"):
        check("ffn_backward", Variant("flat", flat, "wrong"), dtypes=["float32"], seeds=(0,), quiet=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_autograd(activation, device):
    tensors = [t.requires_grad_() for t in network(activation=activation, device=device)]
    doubled = [t.detach().double().requires_grad_() for t in tensors]
    y, want = ffn(*tensors, activation), reference(*doubled, activation)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(device)
    got = torch.autograd.grad(y, tensors, grad)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-4)
    for one, right in zip(got, torch.autograd.grad(want, doubled, grad.double())):
        torch.testing.assert_close(one.double(), right, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_the_layer_is_llamas_network(device):
    layer = FusedFFN(24, 16, activation="swiglu", bias=False, device=device)
    gate, up, down = (torch.randn(16, 24, device=device), torch.randn(16, 24, device=device), torch.randn(24, 16, device=device))
    layer.load_state_dict({"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": down})
    x = torch.randn(2, 3, 24, device=device)
    want = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-3)
    layer(x).sum().backward()
    assert layer.gate_up_proj.weight.grad.shape == (32, 24) and layer.gate_up_proj.weight.grad.abs().sum() > 0


def test_the_layer_with_gelu_has_biases_and_takes_one_token():
    layer = FusedFFN(24, 16)
    x = torch.randn(24)
    want = F.linear(F.gelu(F.linear(x, layer.up_proj.weight, layer.up_proj.bias)), layer.down_proj.weight, layer.down_proj.bias)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("save", [False, True])
def test_opcheck(save):
    tensors = [t.requires_grad_() for t in network(activation="swiglu")]
    torch.library.opcheck(torch.ops.labkernels.ffn.default, (*tensors, "swiglu", save))
    x, w1, w2, b1, _ = (t.detach() for t in tensors)
    grads = (torch.randn_like(x), x, F.linear(x, w1, b1), w1, w2, "swiglu", True)
    torch.library.opcheck(torch.ops.labkernels.ffn_backward.default, grads, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.gpu
@pytest.mark.parametrize("grads", [False, True])
def test_torch_compile_takes_it_whole(grads):
    tensors = [t.requires_grad_(grads) for t in network(40, 64, 48, "swiglu", torch.bfloat16, "cuda")]
    compiled = torch.compile(lambda *args: 2 * ffn(*args, "swiglu"), fullgraph=True)
    got, want = compiled(*tensors), 2 * ffn(*tensors, "swiglu")
    torch.testing.assert_close(got, want, rtol=2e-2, atol=1e-1)
    if grads:
        for one, right in zip(torch.autograd.grad(got.float().sum(), tensors), torch.autograd.grad(want.float().sum(), tensors)):
            torch.testing.assert_close(one, right, rtol=5e-2, atol=1.0)


def test_autocast_computes_in_its_dtype():
    tensors = network(5, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = ffn(*tensors)
    assert y.dtype == torch.bfloat16
    want = reference(*(t.bfloat16().double() for t in tensors))
    assert (y - want).norm() < 1e-2 * want.norm()


def test_the_gradients_function_leaves_biases_out_unless_asked():
    x, w1, w2, b1, _ = network()
    pre, grad = F.linear(x, w1, b1), torch.randn(5, 24)
    for bias in (False, True):
        got, want = ffn_backward(grad, x, pre, w1, w2, bias=bias), backward_reference(grad, x, pre, w1, w2, bias=bias)
        for one, right in zip(got, want):
            torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-3)


def test_nothing_to_multiply():
    x, w1, w2, b1, b2 = network()
    assert ffn(x[:0], w1, w2).shape == (0, 24)
    torch.testing.assert_close(ffn(x, w1[:0], w2[:, :0], None, b2), b2.expand(5, 24))
    assert [t.shape for t in ffn_backward(x[:0], x[:0], x.new_empty(0, 16), w1, w2)][:3] == [(0, 24), w1.shape, w2.shape]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"activation": "relu"}, "ffn: activation is 'relu'; it must be one of 'gelu', 'gelu_tanh', 'swiglu'"),
        ({"w1": torch.ones(16, 23)}, r"ffn: w1 has shape \(16, 23\); .* it must be \(16, 24\)"),
        ({"w1": torch.ones(16, 24), "activation": "swiglu"}, r"ffn: w1 has shape .* \(32, 24\), gates and ups"),
        ({"w2": torch.ones(24, 16).half()}, "ffn: w2 is float16, x is float32; both must be equal"),
        ({"b1": torch.ones(24)}, r"ffn: b1 has shape \(24,\)"),
        ({"b2": torch.ones(24, 1)}, r"ffn: b2 has shape \(24, 1\); it must have one axis, \(embed,\)"),
        ({"w2": torch.ones(16, 24).t()}, "ffn: w2 has strides .* dense in memory"),
        ({"x": torch.tensor(1.0)}, r"ffn: x has shape \(\); it must have two axes"),
    ],
)
def test_bad_inputs_are_named(change, message):
    inputs = dict(zip(("x", "w1", "w2", "b1", "b2"), network())) | change
    with pytest.raises(ArgumentError, match=message):
        ffn(**inputs)


@pytest.mark.parametrize("name, change, message", [("grad_out", torch.ones(5, 23), "grad_out has shape"), ("pre", torch.ones(5, 32), "pre has shape")])
def test_bad_inputs_of_the_gradients_are_named(name, change, message):
    x, w1, w2, *_ = network()
    inputs = {"grad_out": x, "x": x, "pre": torch.ones(5, 16), "w1": w1, "w2": w2} | {name: change}
    with pytest.raises(ArgumentError, match=f"ffn_backward: {message}"):
        ffn_backward(**inputs)


@pytest.mark.parametrize("arguments, message", [((0, 4), "embed_dim is 0"), ((4, True), "ffn_dim is True"), ((4, 4, "relu"), "activation is 'relu'")])
def test_the_layer_names_a_bad_argument(arguments, message):
    with pytest.raises(ArgumentError, match=f"FusedFFN: {message}"):
        FusedFFN(*arguments)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_fp8_errs_by_its_rounding_alone(activation, device):
    x, w1, w2, b1, b2 = network(20, 48, 80, activation, torch.bfloat16, device)
    (v1, s1), (v2, s2) = fp8_rows(w1), fp8_rows(w2)
    wide = lambda values, scales: scales[:, None].double() * values.double()
    y = ffn_fp8(x, v1, v2, s1, s2, b1, b2, activation)
    pre = F.linear(wide(*fp8_rows(x)), wide(v1, s1), b1.double()).bfloat16()
    want = F.linear(wide(*fp8_rows(pre, activation)), wide(v2, s2), b2.double())
    assert (y - want).norm() < 8e-3 * want.norm()
    exact = reference(*(t.double() for t in (x, w1, w2, b1, b2)), activation)
    assert 1e-3 * exact.norm() < (y - exact).norm() < 8e-2 * exact.norm()


def test_fp8_rows_bring_the_largest_to_448():
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    values, scales = fp8_rows(x)
    assert (values.float().abs().amax(1) == 448).all()
    torch.testing.assert_close(scales[:, None] * values.float(), x, rtol=2**-4, atol=1e-3)


@pytest.mark.parametrize("change, message", [({"x": torch.ones(3, 16)}, "x is float32"), ({"w1": torch.ones(8, 16)}, "w1 is float32"), ({"activation": "relu"}, "'relu'")])
def test_fp8_names_bad_inputs(change, message):
    weight, scale = torch.ones(16, 16).to(torch.float8_e4m3fn), torch.ones(16)
    inputs = {"x": torch.ones(3, 16).bfloat16(), "w1": weight, "w2": weight, "scale_1": scale, "scale_2": scale} | change
    with pytest.raises(ArgumentError, match=f"ffn_fp8: .*{message}"):
        ffn_fp8(**inputs)


def test_a_layer_goes_to_fp8():
    torch.manual_seed(0)
    layer = FusedFFN(48, 80, activation="swiglu", dtype=torch.bfloat16)
    x = torch.randn(2, 3, 48).bfloat16()
    with torch.no_grad():
        want, got = layer(x), layer.to_fp8()(x)
    assert got.shape == want.shape and 0 < (got - want).norm() < 0.1 * want.norm()
