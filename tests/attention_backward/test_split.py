"""v4 of `attention_backward`, float32 from halves: right in every option, as exact as PyTorch's float32, clean, equal bits in deterministic mode."""

from functools import partial

import pytest
import torch

from labkernels.attention import launches
from labkernels.attention_backward import split
from labkernels.attention_backward.packing import varlen
from labkernels.attention_backward.peers import native
from labkernels.attention_backward.reference import reference
from labkernels.attention_backward.split import FILE, TILINGS, VARIANT, configured
from labkernels.cuda import sanitizing
from labkernels.cuda.emulator import profile
from labkernels.cuda.variants import kernel
from labkernels.operation import ops
from tests.attention_backward.backward_cases import LENGTHS, MASKS, WINDOWS, assert_right, complete
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MAIN = "attention_backward_split"


def inputs_of(device="cpu", **shape) -> dict:
    return ops["attention_backward"].make_inputs(torch.Generator().manual_seed(0), device, torch.float32, **complete(shape))


def errors(found, inputs: dict) -> list[float]:
    """Of each gradient as a whole, relative, against float64."""
    exact = reference(**{name: x.double() if torch.is_tensor(x) and x.is_floating_point() else x for name, x in inputs.items()})
    return [float((got.double() - want).norm() / want.norm()) for got, want in zip(found, exact)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", WINDOWS, ids=str)
def test_windows(shape, device):
    assert_right(VARIANT.fn, shape, torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [*(pytest.param(shape, marks=pytest.mark.gpu) for shape in MASKS[:3]), MASKS[3]], ids=str)
def test_masks(shape, device):
    assert_right(VARIANT.fn, shape, torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["d64_small", "d128", pytest.param("d128_small", marks=pytest.mark.gpu)])
def test_tilings(name, device):
    shape = {"seq_len": 70, "kv_len": 140, "causal": True, "head_dim": TILINGS[name].head_dim - 24, "heads": 2, "kv_heads": 1}
    assert_right(partial(configured, name), shape, torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_gives_equal_bits(device):
    shape = {"seq_len": 200, "kv_len": 300, "causal": True, "heads": 2, "kv_heads": 1, "deterministic": True}
    assert_right(VARIANT.fn, shape, torch.float32, device, repeat=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", LENGTHS, ids=str)
def test_packed_sequences(shape, device):
    assert_right(varlen(VARIANT.fn), shape, torch.float32, device)


@pytest.mark.parametrize("device, seq_len, head_dim", [("cpu", 130, 64), pytest.param("cuda", 4096, 128, marks=pytest.mark.gpu)])
def test_errs_at_most_four_times_as_much_as_pytorchs_float32(device, seq_len, head_dim):
    inputs = inputs_of(device, seq_len=seq_len, head_dim=head_dim)
    allowed = [4 * error for error in errors(native(**inputs), inputs)]
    assert all(error <= bound for error, bound in zip(errors(VARIANT.fn(**inputs), inputs), allowed))
    # Without the low halves of k it would not be: this test sees what they are for.
    only_high = {**inputs, "k": inputs["k"].half().float()}
    assert errors(VARIANT.fn(**only_high), inputs)[0] > 20 * allowed[0]


@pytest.mark.parametrize("device", DEVICES)
def test_numbers_of_any_size_keep_their_digits(device):
    """Halves would overflow, or vanish, without their scales."""
    inputs = inputs_of(device, seq_len=70, kv_len=130, causal=True)
    want = VARIANT.fn(**inputs)
    for size in (2.0**40, 2.0**-40):
        changed = {**inputs, "q": inputs["q"] * size, "k": inputs["k"] / size, "grad_out": inputs["grad_out"] * size}
        for got, expected, factor in zip(VARIANT.fn(**changed), want, (1, size * size, size)):
            torch.testing.assert_close(got / factor, expected, rtol=1e-6, atol=1e-6)


def test_an_infinite_gradient_reaches_only_what_it_is_a_gradient_of():
    inputs = inputs_of(seq_len=70, kv_len=100, heads=2)
    inputs["grad_out"][0, 0, 3, 5] = float("inf")
    want = [gradient.isfinite() for gradient in reference(**inputs)]
    for got, finite in zip(VARIANT.fn(**inputs), want):
        assert torch.equal(got.isfinite(), finite) and not finite.all()


def test_several_launches_and_a_turned_lse_give_the_same(monkeypatch):
    inputs = inputs_of(seq_len=5, kv_len=9, batch=4, heads=2, kv_heads=1, causal=True)
    want = VARIANT.fn(**inputs)
    monkeypatch.setattr(launches, "MOST", 3)
    for got, expected in zip(VARIANT.fn(**inputs | {"lse": inputs["lse"].mT.contiguous().mT}), want):
        assert torch.equal(got, expected)


def test_clean_under_the_sanitizer():
    with sanitizing():
        VARIANT.fn(**inputs_of(seq_len=70, kv_len=140, causal=True))
        VARIANT.fn(**inputs_of(seq_len=35, kv_len=70, head_dim=40, heads=2, kv_heads=1, deterministic=True))


def test_shared_memory_has_no_bank_conflicts(monkeypatch):
    reports = {}

    def profiled(file, name, *template):
        run = kernel(file, name, *template)
        return lambda *launch: reports.update({name: profile(run, *launch)})

    monkeypatch.setattr(split, "kernel", profiled)
    tiling = TILINGS["d64_small"]
    configured(tiling, **inputs_of(seq_len=2 * tiling.queries, kv_len=tiling.keys, head_dim=tiling.head_dim))
    lines = reports[MAIN].by_line
    # Where lanes part in the emulator's roundings, their requests are counted apart: those of whole warps are judged, of 16 bytes a lane.
    whole = lines[(lines.shared_load_bytes == 512 * lines.shared_load_requests) & (lines.shared_load_requests > 0)]
    assert len(whole) >= 3 and whole.shared_load_conflicts.sum() == 0
    stores = lines[(lines.shared_store_bytes == 128 * lines.shared_store_requests) & (lines.shared_store_requests > 50)]
    assert len(stores) >= 2 and stores.shared_store_conflicts.sum() == 0


@pytest.mark.parametrize("name, spilled", [("d64", 0), ("d128", 200)])
def test_spills_at_most_a_few_sums(name, spilled):
    resources = taken(kernel(FILE, MAIN, TILINGS[name], 0, "false"), "sm_90a")
    assert resources.spill_stores <= spilled, resources


def test_a_tiling_is_chosen_that_fits(monkeypatch):
    q = torch.empty(1, 1, 64, 128)
    assert split.best_tiling(q) == TILINGS["d128"]
    monkeypatch.setattr(split.tensor_cores, "_shared_memory", lambda device: 163 * 1024)  # an A100's
    assert split.best_tiling(q) == TILINGS["d128_small"]
    monkeypatch.setattr(split.tensor_cores, "_shared_memory", lambda device: 99 * 1024)
    assert split.best_tiling(q[..., :64]) == TILINGS["d64_small"]
    lse = torch.zeros(1, 1, 64)
    assert VARIANT.accepts(q, q, q, q, q, lse) == "needs more shared memory than this GPU has"


def test_refusals_say_why():
    rows, lse = torch.zeros(1, 2, 64, 64), torch.zeros(1, 2, 64)
    assert VARIANT.accepts(rows, rows, rows, rows, rows, lse) is None
    assert VARIANT.accepts(*[rows.bfloat16()] * 5, lse) == "takes float32"
    assert VARIANT.accepts(*[rows[:, :, :63]] * 5, lse[..., :63]) == "takes 64 queries or more"
    assert VARIANT.accepts(torch.zeros(1).expand(1, 2, 64, 64), rows, rows, rows, rows, lse) == "takes rows that lie on 32 bytes, grad_out's do not"
    wide = torch.zeros(1, 1, 64, 136)
    assert VARIANT.accepts(wide, wide, wide, wide, wide, lse) == "takes a head_dim of at most 128"
