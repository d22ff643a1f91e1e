"""Padding: offsets from masks and lengths, packing and putting back, gradients, refusals."""

import pytest
import torch

import labkernels as lk
from labkernels.cuda import sanitizing
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.padding import padding_offsets
from labkernels.padding.pad_op import OP as PAD
from labkernels.padding.padding_offsets_op import OP as OFFSETS
from labkernels.padding.unpad_op import OP as UNPAD

OPS = {op.name: op for op in (OFFSETS, UNPAD, PAD)}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ops = torch.ops.labkernels


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("op, variant", [(op.name, variant) for op in OPS.values() for variant in op.variants])
def test_variant_passes_the_check(op, variant):
    dtypes = None if torch.cuda.is_available() else ["float32" if op == "padding_offsets" else "bfloat16"]
    assert check(OPS[op], variant, seeds=(0,), dtypes=dtypes, quiet=True).sanitizer == "clean"


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_the_fastest_variant_passes_the_check_on_a_gpu(op):
    check(OPS[op], list(OPS[op].variants)[-1], seeds=(0,), dtypes=OPS[op].dtypes[:2], isolated=False, quiet=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch, seq_len", [(1, 1), (3, 33), (5, 300), (300, 3), (2, 0), (0, 4)])
def test_offsets_of_any_mask(batch, seq_len, device):
    mask = torch.rand(batch, seq_len) > 0.4
    with sanitizing():
        found = padding_offsets(mask.to(device))
    places = mask.flatten().nonzero()[:, 0]
    inverse = torch.full((batch * seq_len,), -1).index_put((places,), torch.arange(len(places)))
    assert found.indices.tolist() == places.tolist() and found.inverse.flatten().tolist() == inverse.tolist()
    assert found.cu_seqlens.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert {tensor.dtype for tensor in found} == {torch.int32}


def test_offsets_of_lengths_are_those_of_their_mask():
    lengths, total = torch.tensor([3, 0, 5, 2], dtype=torch.int32), 10
    by_mask = padding_offsets(torch.arange(5) < lengths[:, None])
    for found in (padding_offsets(lengths=lengths, seq_len=5), padding_offsets(lengths=lengths, seq_len=5, total=total)):
        assert all(torch.equal(one, other) for one, other in zip(found, by_mask))


@pytest.mark.parametrize("device", DEVICES)
def test_there_and_back(device):
    mask = torch.rand(3, 7, device=device) > 0.3
    x, found = torch.randn(3, 7, 16, device=device), padding_offsets(mask)
    packed = lk.functional.unpad(x, found.indices)
    assert torch.equal(packed, x[mask])
    assert torch.equal(lk.functional.pad(packed, found.inverse), x * mask[..., None])


def test_gradients_go_the_other_way():
    mask = torch.rand(3, 7) > 0.3
    found, x = padding_offsets(mask), torch.randn(3, 7, 8, requires_grad=True)
    packed = lk.functional.unpad(x, found.indices)
    factor = torch.randn_like(packed)
    (grad,) = torch.autograd.grad((packed * factor).sum(), x)
    assert torch.equal(grad[mask], factor) and grad[~mask].eq(0).all()
    packed = packed.detach().requires_grad_()
    factor = torch.randn(3, 7, 8)
    (grad,) = torch.autograd.grad((lk.functional.pad(packed, found.inverse) * factor).sum(), packed)
    assert torch.equal(grad, factor[mask])


def test_opcheck():
    found = padding_offsets(torch.rand(2, 5) > 0.3)
    torch.library.opcheck(ops.unpad.default, (torch.randn(2, 5, 8, requires_grad=True), found.indices))
    torch.library.opcheck(ops.pad.default, (torch.randn(len(found.indices), 8, requires_grad=True), found.inverse))


@pytest.mark.parametrize("device", DEVICES)
def test_torch_compile_takes_them_whole(device):
    found, x = padding_offsets(torch.rand(2, 5, device=device) > 0.3), torch.randn(2, 5, 8, device=device)
    fn = lambda x: lk.functional.pad(lk.functional.unpad(x, found.indices) * 2, found.inverse)
    compiled = torch.compile(fn, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    torch.testing.assert_close(compiled(x), fn(x))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: padding_offsets(), "padding_offsets: give either mask or lengths"),
        (lambda: padding_offsets(torch.ones(2, 3)), r"padding_offsets: mask is float32 of shape \(2, 3\); it must be bool, \(batch, seq_len\)"),
        (lambda: padding_offsets(lengths=torch.tensor([1])), "padding_offsets: seq_len is None"),
        (lambda: lk.functional.unpad(torch.randn(3, 8), torch.arange(2)), r"unpad: x has shape \(3, 8\); it must have three axes"),
        (lambda: lk.functional.pad(torch.randn(3, 8), torch.randn(2, 2)), "pad: inverse is float32; it must be int32 or int64"),
    ],
)
def test_wrong_inputs_are_named(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()
