"""SwiGLU, its gradients and residual addition: checked by the judge, differentiable, opaque to torch.compile, clear about wrong inputs."""

import pytest
import torch
import torch.nn.functional as F

import labkernels as lk
from labkernels.elementwise.residual_add_op import OP as ADD
from labkernels.elementwise.swiglu_backward_op import OP as BACKWARD
from labkernels.elementwise.swiglu_op import OP as SWIGLU
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed

OPS = {op.name: op for op in (SWIGLU, BACKWARD, ADD)}
VARIANTS = [(op.name, variant) for op in OPS.values() for variant in op.variants]
ops = torch.ops.labkernels


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def normal(*shape, grad=True):
    return torch.randn(shape).requires_grad_(grad)


@pytest.mark.parametrize("op, variant", VARIANTS)
def test_variant_passes_the_check(op, variant):
    dtypes = None if torch.cuda.is_available() else ["float32" if variant == "v1_naive" else "bfloat16"]  # the same code for all
    assert check(OPS[op], variant, seeds=(0,), dtypes=dtypes, quiet=True).sanitizer == "clean"


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_the_fastest_variant_passes_the_check_on_a_gpu(op):
    check(OPS[op], list(OPS[op].variants)[-1], seeds=(0,), dtypes=["float32", "bfloat16"], isolated=False, quiet=True)


@pytest.mark.parametrize("op", OPS)
def test_reference_agrees_with_pytorch(op):
    for shape in OPS[op].check_shapes:
        inputs = OPS[op].make_inputs(torch.Generator().manual_seed(0), "cpu", torch.float64, **shape)
        for got, want in zip(OPS[op].each(OPS[op].reference(**inputs)), OPS[op].each(OPS[op].native(**inputs))):
            torch.testing.assert_close(got, want)


def test_bytes_by_hand():
    assert SWIGLU.bytes_moved(torch.bfloat16, rows=16_384, cols=11_008) == 3 * 16_384 * 11_008 * 2
    assert BACKWARD.bytes_moved(torch.float32, rows=3, cols=5) == 5 * 15 * 4
    assert ADD.bytes_moved(torch.float16, rows=3, cols=5, bias=True) == (45 + 5) * 2


def test_swiglu_of_two_and_of_one_packed_tensor_is_differentiable():
    gate, up = normal(2, 3, 24), normal(2, 3, 24)
    packed = torch.cat([gate, up], dim=-1).detach().requires_grad_()
    want = F.silu(gate) * up
    weight = torch.randn_like(want)
    want_grads = torch.autograd.grad((want * weight).sum(), (gate, up))
    got = lk.functional.swiglu(gate, up)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad((got * weight).sum(), (gate, up)), want_grads)
    got = lk.functional.swiglu(packed)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad((got * weight).sum(), packed)[0], torch.cat(want_grads, dim=-1))


def test_a_gradient_that_is_one_number_repeated():
    """.sum() hands down an expanded gradient, whose rows no kernel could read in place."""
    packed = normal(3, 16)
    lk.functional.swiglu(packed).sum().backward()
    (want,) = torch.autograd.grad((F.silu(packed[:, :8]) * packed[:, 8:]).sum(), packed)
    torch.testing.assert_close(packed.grad, want)


def test_halves_of_a_packed_gradient_share_their_memory():
    grad_gate, grad_up = lk.functional.swiglu_backward(torch.randn(3, 8), torch.randn(3, 16))
    assert grad_up.data_ptr() == grad_gate.data_ptr() + 8 * 4 and grad_gate.stride() == (16, 1)


def test_residual_add_is_differentiable():
    x, residual, bias = normal(2, 3, 8), normal(2, 3, 8), normal(8)
    got = lk.functional.residual_add(x, residual, bias)
    torch.testing.assert_close(got, x + residual + bias)
    weight = torch.randn_like(got)
    grads = torch.autograd.grad((got * weight).sum(), (x, residual, bias))
    torch.testing.assert_close(grads, (weight, weight, weight.sum((0, 1))))


def test_opcheck():
    torch.library.opcheck(ops.swiglu.default, (normal(3, 8), normal(3, 8)))
    torch.library.opcheck(ops.swiglu.default, (normal(3, 16), None))
    torch.library.opcheck(ops.residual_add.default, (normal(3, 8), normal(3, 8), normal(8)))
    torch.library.opcheck(ops.swiglu_backward.default, (normal(3, 8, grad=False), normal(3, 8, grad=False), normal(3, 8, grad=False)))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_torch_compile_takes_them_whole(device):
    x, packed = torch.randn(4, 8, device=device), torch.randn(4, 16, device=device)
    fn = lambda x, packed: lk.functional.residual_add(x, lk.functional.swiglu(packed) * 2)
    compiled = torch.compile(fn, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    torch.testing.assert_close(compiled(x, packed), fn(x, packed))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: lk.functional.swiglu(x[:, :3]), "swiglu: gate has shape (4, 3); without up it holds both, so its last axis must be even"),
        (lambda x: lk.functional.swiglu(x, x[:2]), "swiglu: up has shape (2, 6), gate has (4, 6); both must be equal"),
        (lambda x: lk.functional.swiglu(x.int(), x.int()), "swiglu: gate is int32; it must be float32, bfloat16 or float16"),
        (lambda x: lk.functional.swiglu_backward(x, x[:2], x[:2]), "swiglu_backward: grad has shape (4, 6); it must be (2, 6)"),
        (lambda x: lk.functional.residual_add(x, x.half()), "residual_add: residual is float16, x is float32; both must be equal"),
        (lambda x: lk.functional.residual_add(x, x, x[0, :2]), "residual_add: bias has shape (2,); it must be one number a column of x, (6,)"),
    ],
)
def test_wrong_inputs_are_named(call, words):
    with pytest.raises(ArgumentError) as error:
        call(torch.randn(4, 6))
    assert words in str(error.value)


def test_nothing_in_nothing_out():
    assert lk.functional.swiglu(torch.empty(0, 6)).shape == (0, 3)
    assert lk.functional.residual_add(torch.empty(3, 0), torch.empty(3, 0)).shape == (3, 0)


@pytest.mark.parametrize(
    "op, mistake, words",
    [
        ("swiglu", lambda gate, up=None: F.silu(up) * gate if up is not None else F.silu(gate[..., 1::2]) * gate[..., ::2], "changed places"),
        ("swiglu", lambda gate, up=None: gate.sigmoid() * up if up is not None else None, "GLU"),
        ("swiglu_backward", lambda grad, gate, up=None: (grad * up * gate.sigmoid(), grad * F.silu(gate)), "second term"),
        ("residual_add", lambda x, residual, bias=None: x + residual, "the bias is missing"),
    ],
)
def test_classic_mistakes_are_named(op, mistake, words):
    only = {"bias": True} if op == "residual_add" else {"layout": "two"}
    with pytest.raises(CheckFailed) as failure:
        check(OPS[op], mistake, dtypes=["float32"], rows=5, seeds=(0,), quiet=True, **only)
    assert words in failure.value.hint


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_vectors_do_not_spill(arch):
    from labkernels.cuda.variants import kernel
    from labkernels.elementwise.swiglu_variants import FOLDER

    for name in ("swiglu_vectors", "swiglu_backward_vectors"):
        assert kernel(FOLDER / "v2_swiglu_vectors.cu", name, torch.bfloat16, 8, 2).resources(arch).spill_store_bytes == 0
