"""Operations: the ladder is walked from its top, refusals are told, names are suggested."""

import subprocess
import sys

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.lab.compare import doubled
from labkernels.operation import Op, Peer, Tolerance, Variant, as_dtype, dtype_name, ops, product_of


def double(**overrides) -> Op:
    """A small operation y = 2x whose two variants are plain PyTorch."""
    variants = {
        "v1_any": Variant("v1_any", lambda x: x + x, idea="adds"),
        "v2_even": Variant(
            "v2_even", lambda x: 2 * x, idea="multiplies", accepts=lambda x: None if x.numel() % 2 == 0 else "needs an even length"
        ),
    }
    fields = dict(
        name="double",
        summary="y = 2x",
        load_variants=lambda: variants,
        reference=lambda x: 2 * x,
        native=lambda x: 2 * x,
        problem=lambda x: None if x.dim() == 1 else f"x has {x.dim()} axes; it must have 1",
        make_inputs=lambda generator, device, dtype, n: {"x": torch.randn(n, generator=generator).to(device, dtype)},
        axes=("index",),
        dtypes=(torch.float32,),
        small_shapes=({"n": 3},),
        check_shapes=({"n": 1}, {"n": 33}),
        tolerance=lambda dtype, n: Tolerance(1e-6, 0.0),
        peers={"torch": Peer("torch", lambda x: 2 * x)},
    )
    return Op(**{**fields, **overrides})


def test_the_highest_variant_that_accepts_is_picked():
    op = double()
    assert op.pick(x=torch.ones(4)).name == "v2_even"
    assert op.pick(x=torch.ones(3)).name == "v1_any"
    assert op.run(x=torch.tensor([3.0, 4.0])).tolist() == [6.0, 8.0]


def test_refusals_are_told_when_no_variant_accepts():
    refuse = lambda x: "needs an even length"
    op = double(load_variants=lambda: {"v1": Variant("v1", lambda x: x, "none", accepts=refuse)})
    with pytest.raises(ArgumentError, match=r"double: no variant accepts these inputs\n  v1: needs an even length"):
        op.run(x=torch.ones(3))


def test_wrong_inputs_are_named_before_anything_runs():
    with pytest.raises(ArgumentError, match="double: x has 2 axes; it must have 1"):
        double().run(x=torch.ones(2, 2))


def test_a_gradient_is_not_silently_lost():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ArgumentError, match="double: x requires a gradient"):
        double().run(x=x)
    with torch.no_grad():
        assert double().run(x=x).tolist() == [2.0, 2.0]


def test_variants_are_loaded_once_and_only_when_read():
    loads = []

    def load():
        loads.append(1)
        return {}

    op = double(load_variants=load)
    assert loads == []
    assert op.variants == {} and op.variants is op.variants
    assert loads == [1]


def test_implementation_finds_variants_and_peers_and_suggests():
    op = double()
    assert op.implementation("v2_even").idea == "multiplies"
    assert op.implementation("torch").name == "torch"
    with pytest.raises(KeyError, match="did you mean 'v2_even'"):
        op.implementation("v2_evn")


def test_registry_suggests_a_name():
    with pytest.raises(KeyError, match="no operation named 'atention'; did you mean 'attention'"):
        ops["atention"]
    known = ["sum", "softmax", "matmul", "scaled_matmul", "attention", "attention_backward", "ffn", "rms_norm", "quant_matmul", "decode_attention"]
    assert [name for name in ops if name in known] == known and len(set(ops)) == len(ops)


@pytest.mark.parametrize("name", list(ops))
def test_every_operation_describes_itself(name):
    op = ops[name]
    assert op.name == name and op.summary
    generator, axes = torch.Generator().manual_seed(0), set()
    for dtype in op.dtypes:
        for shape in op.small_shapes + op.check_shapes:
            inputs = op.make_inputs(generator, "cpu", dtype, **shape)
            assert op.problem(**inputs) is None
            wants = op.each(op.reference(**doubled(inputs)))
            assert all(want.isfinite().all() for want in wants), f"the reference is not finite on {shape}"
            assert any(want.abs().max() > 0 for want in wants), f"zeros would be right on {shape}"
            axes.add(max(want.dim() for want in wants))
            tolerance = op.tolerance(dtype, **shape)
            assert 0 < tolerance.relative < (0.07 if name in ("rms_norm_quantized", "qkv_rope_cache") else 0.05)  # half a step of float8_e4m3fn is 1/16
    assert max(axes) == len(op.axes)
    assert torch.float32 in op.dtypes or name in ("scaled_matmul", "w8a8_matmul", "ffn_fp8")  # sums of 8-bit products are written with 16 bits


def test_reading_an_operation_imports_no_compiler():
    script = (
        "import sys, labkernels as lk\n"
        "for name in lk.ops: lk.ops[name].check_shapes\n"
        "loaded = {'numba', 'cupy', 'cuda.core', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_product_of_a_sweep():
    assert product_of({"n": [1, 2], "causal": True}) == [{"n": 1, "causal": True}, {"n": 2, "causal": True}]


def test_dtypes_by_name():
    assert as_dtype("bfloat16") is torch.bfloat16 and dtype_name(torch.bfloat16) == "bfloat16"
    with pytest.raises(ValueError, match="'float33' is not a dtype"):
        as_dtype("float33")
