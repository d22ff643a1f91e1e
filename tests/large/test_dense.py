"""Dense tensors of more than 2^31 elements, as a batch of training or a large cache has: every element of every result is looked at.

A small problem is laid end to end until an input or a result has so many elements; the result must be the small one again and again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

import labkernels as lk
from labkernels.quant.formats import FOUR_BIT, QuantizedWeight
from tests.large.far import BYTES, PAST, assert_repeats, assert_same, in_cuda_cpp, need_room

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """`op` on `shape`, repeated along these axes of these inputs. `results`: of each the axis that repeats, None for one that does not, and the power
    of the count of repetitions that it is multiplied by; None for a result that is not looked at."""

    op: str
    shape: dict
    inputs: dict[str, int]
    results: tuple[tuple[int | None, int | None], ...] = ((0, 0),)
    variants: tuple[str, ...] | None = ()  # in addition to the one that is picked; None: all in CUDA C++
    options: dict = field(default_factory=dict)
    dtype: torch.dtype = DTYPE

    def __str__(self) -> str:
        return "-".join([self.op, *self.inputs][:2])


ROWS = {"rows": 999, "cols": 1024}  # neither divides 2^31: an offset that has lost its upper bits does not meet an equal row
HEADS = {"batch": 3, "heads": 8, "kv_heads": 1, "seq_len": 1000, "kv_len": 1000, "head_dim": 128, "causal": False}
SUMS = (None, 1)  # of all rows
UNSEEN = (None, None)  # dweight: a sum over many equal chunks in bfloat16, which stops growing
CASES = [
    Case("softmax", ROWS, {"x": 0}, variants=None),
    Case("rms_norm", ROWS, {"x": 0}, variants=None),
    Case("layer_norm", ROWS, {"x": 0}, variants=None),
    Case("add_rms_norm", ROWS, {"x": 0, "residual": 0}, ((0, 0), (0, 0)), None),
    Case("rms_norm_quantized", ROWS, {"x": 0}, variants=None),
    Case("rms_norm_backward", ROWS, {"grad_out": 0, "x": 0}, ((0, 0), SUMS), ("v2_registers",)),
    Case("layer_norm_backward", ROWS, {"grad_out": 0, "x": 0}, ((0, 0), SUMS, SUMS), ("v2_registers",)),
    Case("residual_add", ROWS, {"x": 0, "residual": 0}, variants=None),
    Case("swiglu", ROWS, {"gate": 0, "up": 0}, variants=None),
    Case("swiglu_backward", ROWS, {"grad": 0, "gate": 0, "up": 0}, ((0, 0), (0, 0)), None),
    Case("embedding", {"n": 999, "vocab": 777, "cols": 1024}, {"tokens": 0}, variants=None),
    Case("embedding_backward", {"n": 999, "vocab": 777, "cols": 1024}, {"grad": 0, "tokens": 0}, (SUMS,)),
    Case("pad", {"batch": 9, "seq_len": 111, "cols": 1024}, {"inverse": 0}, variants=None),
    Case("attention_mask", {"batch": 9, "seq_len": 500, "kv_len": 520, "causal": True, "padded": True}, {"lengths": 0}, variants=None),
    Case("masked_softmax", {"batch": 3, "heads": 2, "queries": 33, "keys": 1000, "causal": True}, {"x": 0}, variants=None),
    Case("rope", {"batch": 3, "heads": 8, "kv_heads": 2, "seq": 100, "head_dim": 128, "positions": "shared"}, {"q": 0, "k": 0}, ((0, 0), (0, 0)), None),
    Case("cross_entropy", {"rows": 99, "vocab": 32008}, {"logits": 0, "target": 0}, ((0, 0), (0, 0)), None),
    Case("linear_cross_entropy", {"tokens": 999, "hidden": 512, "vocab": 32008}, {"x": 0, "target": 0}, ((None, 0), (0, -1), UNSEEN), ("v1_whole",)),
    Case("sample_tokens", {"rows": 99, "vocab": 32008, "top_k": 1}, {"logits": 0}, variants=("v2_radix", "v3_cluster", "v4_look_again"), dtype=torch.float32),  # no ties
    Case("matmul", {"m": 999, "n": 8200, "k": 64}, {"a": 0}, variants=("v4_registers", "v5_pipelined", "v6_tensor_cores")),
    Case("matmul", {"m": 64, "n": 1000, "k": 8192, "layout": "weight"}, {"b": 1}, ((1, 0),), ("v6_tensor_cores",)),
    Case("matmul", {"m": 999, "n": 8200, "k": 64}, {"a": 0}, dtype=torch.float32),
    Case("symmetric_matmul", {"m": 1000, "k": 64, "batch": 3}, {"x": 0}, variants=("v2_tiled",)),
    Case("scaled_matmul", {"m": 999, "n": 8192, "k": 64}, {"a": 0, "scale_a": 0}, variants=("v2_promoted", "v2_hopper")),
    Case("w8a8_matmul", {"m": 999, "n": 8192, "k": 64}, {"x": 0}, variants=("v2_tensor_cores",)),
    Case("gemv", {"m": 1, "n": 1000, "k": 8192}, {"w": 0}, ((1, 0),), ("v2_vectors",)),
    Case("quant_matmul", {"m": 1, "n": 1024, "k": 8192, "scheme": "int4"}, {"weight": 0}, ((1, 0),), ("v2_gemv", "v4_tensor_cores", "v5_hopper")),
    Case("quant_matmul", {"m": 64, "n": 1024, "k": 8192, "scheme": "int8"}, {"weight": 0}, ((1, 0),), ("v4_tensor_cores", "v5_hopper")),
    Case("attention", HEADS, {"q": 0, "k": 0, "v": 0}, variants=("v5_tensor_cores",)),
    Case("attention_backward", HEADS, dict.fromkeys(("grad_out", "q", "k", "v", "out", "lse"), 0), ((0, 0),) * 3),
    Case("decode_attention", {"batch": 3, "length": 1000, "heads": 16, "kv_heads": 2, "head_dim": 128}, {"q": 0, "k": 0, "v": 0, "lengths": 0},
         variants=("v3_split", "v4_tensor_cores", "v5_cluster")),
    Case("ffn", {"tokens": 999, "embed": 64, "ffn": 8192}, {"x": 0}, variants=("v3_tensor_cores",)),
    Case("ffn_backward", {"tokens": 999, "embed": 64, "ffn": 8192}, {"grad_out": 0, "x": 0, "pre": 0}, ((0, 0), SUMS, SUMS, SUMS, SUMS)),
    Case("ffn_fp8", {"tokens": 999, "embed": 64, "ffn": 8192}, {"x": 0}),
]  # fmt: skip
HIDDEN = {"ffn": 8192, "ffn_fp8": 8192, "linear_cross_entropy": 32008}  # elements a token that exist on the way only


def repeated(value, axis: int, times: int):
    if isinstance(value, QuantizedWeight):
        n, k = value.shape
        packed, scales = value.packed.repeat(times, 1), value.scales
        scales = scales.repeat(1, times, *[1] * (scales.dim() - 2)) if value.scheme in FOUR_BIT else scales.repeat(times)
        return replace(value, packed=packed, scales=scales, shape=(n * times, k))
    if value.dtype.itemsize == 1 and value.is_floating_point():
        return repeated(value.view(torch.uint8), axis, times).view(value.dtype)
    if axis and value.stride(axis) != 1:  # the transpose of a dense weight stays one
        return value.t().repeat(times, 1).t()
    return value.repeat(*(times if i == axis else 1 for i in range(value.dim())))


def elements(value) -> int:
    return value.shape[0] * value.shape[1] if isinstance(value, QuantizedWeight) else value.numel()


def check(case: Case, device: str, past: int = PAST) -> None:
    op = lk.ops[case.op]
    small = op.make_inputs(torch.Generator().manual_seed(1), torch.device(device), case.dtype, **case.shape)
    wanted = op.each(op.decode(op.run(**small), **small))
    most = max(elements(value) for value in (*(small[name] for name in case.inputs), *(want for want, (axis, _) in zip(wanted, case.results) if axis is not None)))
    times = past // max(most, HIDDEN.get(case.op, 0) * case.shape.get("tokens", 0)) + 2
    need_room(torch.device(device), BYTES if past == PAST else 0)
    large = small | {name: repeated(small[name], axis, times) for name, axis in case.inputs.items()}
    ladder = op.variants.values() if case.variants else in_cuda_cpp(op)
    others = [variant for variant in ladder if case.variants is None or variant.name in case.variants]
    for variant in {variant.name: variant for variant in (op.pick(**large), *others)}.values():
        if variant.accepts(**large) is not None:
            continue
        found = op.each(op.decode(variant.fn(**large), **large))
        for got, want, (axis, power) in zip(found, wanted, case.results, strict=True):
            if power is None:
                continue
            scale, what = float(times) ** power, f"{case.op} {variant.name}"
            if axis is not None:
                assert_repeats(got, want, axis, scale, what)
            else:
                assert_same(got.float(), want.float() * scale, what)
        del found, got


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_more_than_2_31_elements(case):
    check(case, "cuda")


@pytest.mark.parametrize("case", [case for case in CASES if case.op in ("swiglu", "embedding", "attention_mask")], ids=str)
def test_the_same_cases_with_fewer_elements(case):
    """That the cases above say what they mean, on any machine."""
    check(replace(case, shape=case.shape | ({"cols": 64} if "cols" in case.shape else {"seq_len": 5, "kv_len": 8})), "cpu", 2**17)


@pytest.mark.parametrize("name", ["embedding", "pad", "residual_add", "swiglu"])
def test_the_fast_variants_take_2_31_elements_and_refuse_as_many_vectors(name):
    """Nothing is launched: these tensors have a shape, and no memory."""

    def inputs(rows, cols=4096):
        def empty(*size, dtype=DTYPE):
            return torch.empty(size, dtype=dtype, device="meta")

        return {
            "embedding": lambda: {"tokens": empty(rows, dtype=torch.int64), "weight": empty(100, cols)},
            "pad": lambda: {"packed": empty(100, cols), "inverse": empty(rows, 1, dtype=torch.int32)},
            "residual_add": lambda: {"x": empty(rows, cols), "residual": empty(rows, cols), "bias": None},
            "swiglu": lambda: {"gate": empty(rows, cols), "up": empty(rows, cols)},
        }[name]()

    op = lk.ops[name]
    assert op.pick(**inputs(2**19 + 8)).name == "v2_vectors"
    assert op.pick(**inputs(8 * 2**19 + 8)).name == "v1_naive"
    assert op.pick(**inputs(2**20, 4095)).name == "v1_naive"  # single elements


@pytest.mark.gpu
def test_sums_of_more_than_2_31_elements():
    need_room(torch.device("cuda"), BYTES // 2)
    x = torch.ones(PAST + 77, device="cuda")
    x[-5:] = 1e9
    for variant in in_cuda_cpp(lk.ops["sum"]):
        if variant.name != "v1_naive" and variant.accepts(x=x) is None:
            assert variant.fn(x=x).item() == pytest.approx(PAST + 5e9, rel=1e-4), variant.name


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["embedding", "unpad"])
def test_rows_of_a_table_of_more_than_2_31_elements(name):
    need_room(torch.device("cuda"), BYTES // 4)
    rows, cols = PAST // 4096 + 9, 4096
    table = torch.empty((rows, cols), dtype=DTYPE, device="cuda")
    wanted = torch.tensor([rows - 1, 0, PAST // cols - 1, PAST // cols, PAST // 2 // cols, rows - 5], device="cuda")
    values = torch.randn(len(wanted), cols, device="cuda").to(DTYPE)
    table[wanted] = values
    for variant in in_cuda_cpp(lk.ops[name]):
        inputs = {"tokens": wanted, "weight": table} if name == "embedding" else {"x": table[None], "indices": wanted}
        assert torch.equal(variant.fn(**inputs), values), variant.name


@pytest.mark.gpu
def test_a_gradient_of_a_table_of_more_than_2_31_elements():
    need_room(torch.device("cuda"), BYTES // 2)
    rows, cols = PAST // 4096 + 9, 4096
    tokens = torch.tensor([rows - 1, 0, PAST // cols, rows - 1], device="cuda")
    grad = torch.randn(4, cols, device="cuda").to(DTYPE)
    for variant in in_cuda_cpp(lk.ops["embedding_backward"]):
        found = variant.fn(grad=grad, tokens=tokens, vocab=rows, padding_token=None)
        assert_same(found[rows - 1].float(), grad[0].float() + grad[3].float(), variant.name)
        assert torch.equal(found[PAST // cols], grad[2]) and torch.equal(found[0], grad[1]), variant.name
        assert not found[1 : PAST // cols].any() and not found[PAST // cols + 1 : rows - 1].any(), variant.name
        del found


@pytest.mark.gpu
def test_pages_behind_2_31_elements_of_a_cache_are_written_and_read():
    need_room(torch.device("cuda"), BYTES // 2)
    heads, kv_heads, page_size, head_dim, tokens = 16, 8, 64, 128, 100
    pages = PAST // (kv_heads * page_size * head_dim) + 5
    k_cache, v_cache = (torch.zeros((pages, kv_heads, page_size, head_dim), dtype=DTYPE, device="cuda") for _ in range(2))
    k, v = (torch.randn((tokens, kv_heads, head_dim), device="cuda").to(DTYPE) for _ in range(2))
    table = torch.tensor([[pages - 1, pages - 2]], dtype=torch.int32, device="cuda")
    position = torch.arange(tokens, device="cuda")
    slots = table[0].long()[position // page_size] * page_size + position % page_size
    lk.functional.cache_append(k, v, k_cache, v_cache, slots)
    q = torch.randn((1, heads, head_dim), device="cuda").to(DTYPE)
    lengths = torch.tensor([tokens], dtype=torch.int32, device="cuda")
    inputs = {"q": q, "k": k_cache, "v": v_cache, "lengths": lengths, "block_table": table}
    want = torch.nn.functional.scaled_dot_product_attention(q[:, :, None], *(x.transpose(0, 1)[None] for x in (k, v)), enable_gqa=True)[:, :, 0]
    for variant in in_cuda_cpp(lk.ops["decode_attention"]):
        if variant.accepts(**inputs) is None:
            assert_same(variant.fn(**inputs), want, variant.name)
    found = lk.functional.prefill_attention(q[:, :, None], k_cache, v_cache, lengths, table)
    assert_same(found[:, :, 0], want, "prefill_attention")

    qkv = torch.randn((tokens, (heads + 2 * kv_heads) * head_dim), device="cuda").to(DTYPE)
    angles = lk.functional.rope_frequencies(head_dim).to("cuda")
    inputs = {"qkv": qkv, "cache": (k_cache, v_cache), "angles": angles, "positions": position, "slots": slots}
    for variant in in_cuda_cpp(lk.ops["qkv_rope_cache"]):
        if variant.accepts(**inputs) is None:
            v_cache.zero_()
            variant.fn(**inputs)
            assert torch.equal(v_cache.transpose(1, 2)[table[0].long()].flatten(0, 1)[:tokens], qkv.unflatten(1, (-1, head_dim))[:, -kv_heads:]), variant.name
            assert not v_cache[: pages - 2].any(), variant.name
