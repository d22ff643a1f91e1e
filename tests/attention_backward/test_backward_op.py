"""The operation `attention_backward`: its reference, what it refuses, how it names mistakes, and where no kernel is needed."""

import pytest
import torch

import labkernels as lk
from labkernels.attention_backward import attention_backward, attention_backward_varlen
from labkernels.attention_backward.mistakes import by_formula
from labkernels.attention_backward.peers import padded_attention
from labkernels.attention_backward.reference import forward, reference
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.operation import ops


def inputs_of(dtype=torch.float32, **shape) -> dict:
    shape = {"batch": 1, "heads": 2, "kv_heads": 1, "seq_len": 9, "kv_len": 12, "head_dim": 16, "causal": False, **shape}
    return ops["attention_backward"].make_inputs(torch.Generator().manual_seed(0), "cpu", dtype, **shape)


def test_the_reference_is_the_derivative_by_finite_differences():
    exact = {name: value.double() if torch.is_tensor(value) else value for name, value in inputs_of(causal=True, head_dim=3).items()}
    found = dict(zip("qkv", reference(**exact)))

    def loss(**tensors):
        out = ops["attention"].reference(**{name: exact[name] for name in "qkv"} | tensors, causal=True)
        return float((out * exact["grad_out"]).sum())

    for name, gradient in found.items():
        direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        slope = (loss(**{name: exact[name] + 1e-5 * direction}) - loss(**{name: exact[name] - 1e-5 * direction})) / 2e-5
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_the_forward_pass_of_the_inputs():
    inputs = inputs_of(seq_len=12, kv_len=7, causal=True)  # five queries see nothing
    options = {"causal": True, "scale": None}
    out, lse = ops["attention"].reference(*(inputs[name].double() for name in "qkv"), **options, return_lse=True)
    assert torch.equal(inputs["lse"], lse.float()) and lse[:, :, :5].isneginf().all() and lse[:, :, 5:].isfinite().all()
    torch.testing.assert_close(inputs["out"], out.float())
    assert torch.equal(forward(inputs["q"], inputs["k"], inputs["v"], True)[0], inputs["out"])
    dq, dk, dv = reference(**inputs)
    assert dq[:, :, :5].eq(0).all() and dk.isfinite().all() and dv.isfinite().all()


def test_the_public_function_follows_the_forward_one():
    inputs = inputs_of(seq_len=20, kv_len=30, causal=True, window=(9, None))
    q, k, v = (inputs[name] for name in "qkv")
    out, lse = lk.functional.attention(q, k, v, True, window=(9, None), return_lse=True)
    found = attention_backward(inputs["grad_out"], q, k, v, out, lse, True, window=(9, None), deterministic=True)
    for got, want in zip(found, reference(**inputs)):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_public_function_of_packed_sequences():
    ends = torch.tensor([0, 5, 5, 12], dtype=torch.int32)
    q, grad = torch.randn(2, 12, 4, 16, generator=torch.Generator().manual_seed(0))
    k, v = torch.randn(2, 12, 2, 16, generator=torch.Generator().manual_seed(1))
    out, lse = lk.attention.attention_varlen(q, k, v, ends, ends, True, return_lse=True)
    found = attention_backward_varlen(grad, q, k, v, out, lse, ends, ends, True)
    for one in (slice(0, 5), slice(5, 12)):
        alone = [tensor[one].transpose(0, 1)[None] for tensor in (grad, q, k, v, out)]
        for got, want in zip(found, reference(*alone, lse[None, :, one], True)):
            torch.testing.assert_close(got[one].transpose(0, 1)[None], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [None, "whole_queries", "bias", "float32_bias"])
def test_operands_padded_for_pytorchs_kernel_give_the_same_attention(mask):
    inputs = inputs_of(mask=mask, head_dim=7, causal=True, kv_len=19)
    options = {name: value for name, value in inputs.items() if name not in ("grad_out", "out", "lse")}
    padded = padded_attention(**options)
    torch.testing.assert_close(padded.nan_to_num(0), ops["attention"].reference(**options))


def test_problems_are_named():
    inputs = inputs_of()
    for changed, message in (
        ({"grad_out": inputs["grad_out"][:, :1]}, r"grad_out has shape \(1, 1, 9, 16\); it must be \(1, 2, 9, 16\)"),
        ({"out": inputs["out"].double()}, "out is float64; it must be float32"),
        ({"lse": inputs["lse"][..., :3]}, r"lse has shape \(1, 2, 3\); it must be \(1, 2, 9\)"),
        ({"lse": inputs["lse"].half()}, "lse is float16; it must be float32"),
        ({"k": inputs["k"][..., :8]}, "k has head_dim 8, q has 16"),
    ):
        with pytest.raises(ArgumentError, match=f"attention_backward: {message}"):
            attention_backward(**inputs | changed)


@pytest.mark.parametrize("name", ["v1_plain", "v2_tensor_cores"])
def test_a_row_of_the_least_number_gives_no_gradient(name):
    """Its lse has no digits left to tell its probabilities from: 0, where infinities would spoil the others' gradients of k and v."""
    inputs = inputs_of(torch.bfloat16, mask="bias", head_dim=64)
    inputs["mask"] = inputs["mask"].expand(1, 2, 9, 12).clone()
    inputs["mask"][..., 4, :] = torch.finfo(torch.bfloat16).min
    q, k, v = (inputs[name] for name in "qkv")
    inputs["out"], inputs["lse"] = lk.functional.attention(q, k, v, mask=inputs["mask"], return_lse=True)
    found = ops["attention_backward"].variants[name].fn(**inputs)
    inputs["grad_out"] = inputs["grad_out"].clone()
    inputs["grad_out"][:, :, 4] = 0  # as a loss has it that such a row has no part in
    for got, want in zip(found, reference(**{name: x.double() if torch.is_tensor(x) else x for name, x in inputs.items()})):
        torch.testing.assert_close(got.double(), want, rtol=0.1, atol=0.03)


@pytest.mark.parametrize("sizes", [{"seq_len": 0}, {"kv_len": 0}, {"batch": 0}], ids=str)
def test_nothing_to_see_gives_zeros(sizes):
    inputs = inputs_of(**sizes)
    found = attention_backward(**inputs)
    assert [gradient.shape for gradient in found] == [inputs[name].shape for name in "qkv"]
    assert all(gradient.eq(0).all() for gradient in found)


def wrong(**changed):
    """The formula, with some part of it changed."""

    def gradients(grad_out, q, k, v, out, lse, causal=False, scale=None):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        options = {"causal": causal, "scale": scale, "window": None, "mask": None, "with_delta": True, "group_sum": True, "grad_scale": scale}
        return tuple(by_formula(grad_out, q, k, v, **options | changed).values())

    return gradients


@pytest.mark.parametrize(
    "changed, result, hint",
    [
        ({"grad_scale": 1.0}, "dq", "without the factor `scale`"),
        ({"with_delta": False}, "dq", "without delta"),
        ({"causal": False}, "dq", "without the causal mask"),
        ({"group_sum": False}, "dk", "of the last query head alone"),
    ],
    ids=str,
)
def test_mistakes_are_recognised(changed, result, hint):
    with pytest.raises(CheckFailed) as raised:
        check("attention_backward", wrong(**changed), dtypes=["float32"], seeds=(0,), quiet=True, isolated=False)
    failure = raised.value
    assert failure.reason == "mismatch" and failure.where.startswith(f"{result}, batch 0, head 0") and hint in failure.hint


def test_the_formula_is_right():
    assert check("attention_backward", wrong(), dtypes=["float32"], seeds=(0,), quiet=True, isolated=False).passed > 15
