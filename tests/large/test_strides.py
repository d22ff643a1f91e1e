"""Views whose rows lie so far apart that offsets pass 2^31 elements: the kernels find them, whichever input and axis it is.

On the CPU all but a few pages of such a tensor are never touched, and cost nothing.
"""

import pytest
import torch

import labkernels as lk
from labkernels.errors import ArgumentError, LabKernelsError
from tests.large.far import Memory, assert_same, places

FEW = [  # whose kernels take half a second or less to compile for the CPU, and bring most of the ways in which rows are found
    ("swiglu", torch.bfloat16),
    ("rope", torch.bfloat16),
    ("embedding", torch.bfloat16),
    ("unpad", torch.bfloat16),
    ("attention_mask", torch.bfloat16),
    ("cross_entropy", torch.bfloat16),
]
ALL = [(name, dtype) for name, op in lk.ops.items() for dtype in sorted({op.dtypes[0], op.dtypes[min(1, len(op.dtypes) - 1)]}, key=str)]
ON_GPU = [pytest.param("cuda", *case, marks=pytest.mark.gpu) for case in ALL]


def names(value) -> str:
    return str(value).removeprefix("torch.")


@pytest.mark.parametrize("device, name, dtype", [("cpu", *case) for case in FEW] + ON_GPU, ids=names)
def test_every_variant_finds_rows_past_2_31(device, name, dtype):
    op, tried, memory = lk.ops[name], set(), Memory(device)
    for inputs, which, axis, variant in places(op, dtype, device):
        if device == "cuda" and inputs[which].element_size() > 4:
            continue  # 17 GB of numbers of tokens; the CPU has them
        if device == "cuda" and name == "linear_cross_entropy" and axis == 1:
            continue  # its products are cuBLAS's, which reads outside of matrices whose columns lie 2^30 elements apart: torch.mm alone does
        moved = {**inputs, which: memory.far(inputs[which], axis)}
        if op.problem(**moved) is None and axis < inputs[which].dim() - 1 and (which, axis) not in tried:
            tried.add((which, axis))
            op.pick(**moved)  # somebody takes them; elements far apart within a row may be refused by all
        if op.problem(**moved) is not None or variant.accepts(**moved) is not None:
            continue
        wanted, found = (op.each(op.decode(variant.fn(**given), **given)) for given in (inputs, moved))
        for got, want in zip(found, wanted):
            if isinstance(got, torch.Tensor):
                assert_same(got, want, f"{name} {variant.name}, {which} far apart along axis {axis}")
    assert tried or name in ("sum", "attention_mask")  # which have rows of one number


INT = """
extern "C" __global__ void rows(const float* x, float* y, STRIDE row_stride, int rows) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) y[row] = 2.0f * x[row * row_stride];
}
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_kernel_that_multiplies_ints_is_caught(device):
    x = Memory(device).far(torch.randn(5, 3, device=device), 0)
    y = torch.empty(5, device=device)
    lk.Kernel(INT.replace("STRIDE", "long long"), "rows")(1, 32, (x, y, x.stride(0), 5))
    assert_same(y, 2 * x[:, 0])
    if device == "cpu":  # on a GPU it would take the process with it
        with pytest.raises((AssertionError, LabKernelsError)):
            lk.Kernel(INT.replace("STRIDE", "int"), "rows")(1, 32, (x, y, x.stride(0), 5))
            assert_same(y, 2 * x[:, 0])


def test_more_positions_than_int32_counts_are_refused_by_name():
    mask = torch.ones(1, 1, dtype=torch.bool).expand(2**16, 2**15)
    with pytest.raises(ArgumentError, match="2147483648 positions are more than int32 can count"):
        lk.functional.padding_offsets(mask, total=5)


@pytest.mark.gpu
def test_transposed_weights_of_many_tokens_give_the_loss_of_dense_ones():
    """From 1024 tokens on a product of our own makes the logits, which must leave such weights to PyTorch."""
    x, weight = torch.randn(1100, 64, device="cuda").bfloat16(), torch.randn(512, 64, device="cuda").bfloat16()
    target = torch.randint(0, 512, (1100,), device="cuda")
    for variant in lk.ops["linear_cross_entropy"].variants.values():
        for moved in ({"weight": weight.t().contiguous().t()}, {"x": x.t().contiguous().t()}):
            given = {"x": x, "weight": weight} | moved
            if variant.accepts(**given, target=target) is None:
                for got, want in zip(variant.fn(**given, target=target), variant.fn(x, weight, target)):
                    assert_same(got, want, f"{variant.name}, {list(moved)} transposed")
