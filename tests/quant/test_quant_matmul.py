"""x @ w^T with quantised weights: every scheme by the GEMVs, the operation, its choice of variants, its refusals."""

from dataclasses import replace

import pytest
import torch

import labkernels as lk
from labkernels.cuda import sanitizing
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.lab.measured import measured_file
from labkernels.quant import quant_matmul, quantize, selection
from labkernels.quant.formats import FOUR_BIT, NF4, PACK_ORDER, pack4, unpack4
from labkernels.quant.quant_matmul_op import OP, bytes_moved, weight_bytes
from labkernels.quant.quant_matmul_variants import Stream, _kernel, streamed, tuned, v1_naive, v2_gemv, v3_lut
from tests.recorded_resources import taken

BF16, F16 = torch.bfloat16, torch.float16
ALL = [("int4", 128), ("int4", 64), ("int4", 32), ("nf4", 128), ("nf4", 32), ("codebook", 64), ("int8", None), ("fp8", None)]


def make(m, n, k, scheme="int4", group_size=128, dtype=BF16, device="cpu", seed=0):
    inputs = OP.make_inputs(torch.Generator().manual_seed(seed), device, dtype, m=m, n=n, k=k, scheme=scheme, group_size=group_size)
    return inputs["x"], inputs["weight"]


def assert_right(y, x, weight):
    want = x.double() @ weight.dequantize(torch.float64).t()
    assert y.shape == want.shape and y.dtype == x.dtype and y.is_contiguous()
    distance = float((y.double() - want).norm() / want.norm())
    assert distance < {BF16: 4e-3, F16: 6e-4, torch.float32: 1e-5}[x.dtype], distance


@pytest.mark.parametrize("name", ["v1_naive", "v2_gemv", "v3_lut"])
def test_variant_passes_the_check(name):
    assert check("quant_matmul", name, seeds=(0,), dtypes=["bfloat16"], quiet=True).sanitizer == "clean"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["v1_naive", "v2_gemv", "v3_lut"])
def test_variant_passes_the_whole_check(name):
    check("quant_matmul", name, quiet=True)


@pytest.mark.parametrize("scheme, group_size, dtype", [("int8", None, F16), ("fp8", None, F16), ("int4", 32, F16)])
def test_halves(scheme, group_size, dtype):
    x, weight = make(3, 20, 200, scheme, group_size, dtype)
    assert_right(v2_gemv(x, weight), x, weight)


def test_float32_has_the_first_variant():
    x, weight = make(2, 9, 70, "int4", 32, torch.float32)
    assert_right(v1_naive(x, weight), x, weight)
    assert_right(quant_matmul(x, weight), x, weight)


def test_every_eight_bit_number_is_decoded():
    """x is one column after the other of the unit matrix: the result is the weight."""
    numbers = torch.arange(-128, 128)
    for scheme in ("int8", "fp8"):
        weight = quantize(torch.ones(16, 64), scheme)
        codes = numbers.to(torch.int8).view(4, 64).repeat(4, 1)
        if scheme == "fp8":
            codes = codes.clone().view(torch.float8_e4m3fn)
            codes = torch.where(codes.float().isnan(), torch.zeros_like(codes).float(), codes.float()).to(torch.float8_e4m3fn)
        weight = replace(weight, packed=codes.contiguous(), scales=torch.ones(16))
        for row in range(0, 64, 8):
            x = torch.eye(64, dtype=BF16)[row : row + 8]
            assert torch.equal(v2_gemv(x, weight).float(), weight.dequantize()[:, row : row + 8].t())


@pytest.mark.parametrize("lut", [False, True])
def test_every_code_in_every_place_is_decoded(lut):
    numbers = (torch.arange(16)[:, None] + torch.arange(128)) % 16  # each row has each code in each nibble
    weight = quantize(torch.randn(16, 128), "int4", 128)
    weight = replace(weight, packed=pack4(numbers))
    x = torch.eye(128, dtype=BF16)[40:48]
    got = streamed(Stream(2, 4), x, weight, lut).float()
    torch.testing.assert_close(got, weight.dequantize(BF16)[:, 40:48].t().float(), rtol=2**-7, atol=0)


@pytest.mark.parametrize("config", [Stream(2, 2, 1), Stream(4, 4, 1), Stream(2, 4, 2), Stream(2, 4, 4)])
def test_parts_of_k_are_added_whatever_their_number(config):
    x, weight = make(2, 90, 600)
    first = streamed(config, x, weight)
    assert_right(first, x, weight)
    assert torch.equal(first, streamed(config, x, weight))


def test_a_cluster_has_no_race():
    x, weight = make(1, 90, 600)  # more tiles than blocks, a part of k without a step
    with sanitizing():
        assert_right(streamed(Stream(2, 4, 4), x, weight), x, weight)


def test_rows_of_x_may_lie_anywhere():
    x, weight = make(3, 33, 300)
    wide = torch.zeros(3, 311, dtype=BF16)
    for view in (wide[:, 8:308], wide[:, 3:303], wide[:, 11:311]):
        view.copy_(x)
        assert torch.equal(v2_gemv(view, weight), v2_gemv(x, weight))
    assert torch.equal(v2_gemv(x.t().contiguous().t(), weight), v2_gemv(x, weight))


def test_what_lies_behind_x_is_not_read():
    x, weight = make(2, 20, 77, "int4", 32)
    wide = torch.full((2, 128), torch.nan, dtype=BF16)
    wide[:, :77] = x
    for variant in (v1_naive, v2_gemv, v3_lut):
        assert_right(variant(wide[:, :77], weight), x, weight)


def test_nothing_in_nothing_out():
    x, weight = make(2, 5, 40)
    assert quant_matmul(x[:0], weight).shape == (0, 5)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x, w: (x, w.packed), "weight is a Tensor; it must be a QuantizedWeight"),
        (lambda x, w: (x[0], w), r"x has shape \(40,\); it must have two axes"),
        (lambda x, w: (x[:, :30], w), "x has 30 columns, weight has 40; both must be equal"),
        (lambda x, w: (x.double(), w), "x is float64; it must be float32, bfloat16 or float16"),
        (lambda x, w: (x.to("meta"), w), "weight is on cpu, x is on meta"),
    ],
)
def test_wrong_inputs_are_named(change, words):
    with pytest.raises(ArgumentError, match="quant_matmul: " + words):
        quant_matmul(*change(*make(2, 5, 40)))


def test_refusals_say_why():
    variants = lk.ops["quant_matmul"].variants
    x, weight = make(9, 5, 40)
    assert "up to 8 rows of x" in variants["v2_gemv"].accepts(x=x, weight=weight)
    x, weight = make(1, 5, 40, "nf4", 32)
    assert "unpacks by arithmetic" in variants["v2_gemv"].accepts(x=x, weight=weight)
    assert "looks up codes of 4 bits" in variants["v3_lut"].accepts(*make(1, 5, 40, "int8"))
    assert "16 bits" in variants["v3_lut"].accepts(x=x.float(), weight=weight)


@pytest.fixture
def measured(monkeypatch):
    times = {("int4", 1, 4096, 4096): {"v2_gemv": 5.0, "v3_lut": 7.0}, ("int4", 64, 4096, 4096): {"v2_gemv": 1.0, "v4_tensor_cores": 9.0, "v5_hopper": 12.0}}
    monkeypatch.setattr(selection, "MICROSECONDS", times)
    selection.nearest.cache_clear()
    yield
    selection.nearest.cache_clear()


def test_what_was_measured_decides_and_explain_tells_it(measured):
    x, weight = make(2, 100, 4000)
    weight = replace(weight, any_variant=False)
    explained = lk.explain("quant_matmul", x, weight)
    assert explained.chosen == "v2_gemv"
    assert "v2_gemv is faster on an NVIDIA H200, whose choice the emulator makes: 5.0 us, this 7.0 us (1 row of x, weight 4096 x 4096, the nearest that were measured)" in str(explained)
    x, _ = make(50, 100, 4000)
    assert lk.explain("quant_matmul", x, weight).chosen == "v4_tensor_cores"  # v2_gemv takes no 50 rows, however fast it is


def test_who_is_checked_or_benched_runs_though_another_is_faster(measured):
    x, weight = make(2, 100, 400)
    assert lk.ops["quant_matmul"].variants["v3_lut"].accepts(x=x, weight=weight) is None


def test_every_recorded_choice_names_variants_that_exist():
    assert {name for times in selection.MICROSECONDS.values() for name in times} <= set(lk.ops["quant_matmul"].variants)


def in_order(weight):
    return torch.stack([weight.packed >> 4 * i & 15 for i in range(8)], dim=-1).view(weight.shape[0], -1)[:, : weight.shape[1]]


def per_group(weight, values):
    return values.double().t().repeat_interleave(weight.group_size, 1)[:, : weight.shape[1]]


@pytest.mark.parametrize(
    "mistake, words",
    [
        (lambda w: (in_order(w) - per_group(w, w.scales[..., 1])) * per_group(w, w.scales[..., 0]), "in order, from the lowest bits up"),
        (lambda w: w.numbers() * per_group(w, w.scales[..., 0]), "the zero is missing"),
        (lambda w: (w.numbers().double() - 8) * per_group(w, w.scales[..., 0]), "each group has a zero of its own"),
    ],
)
def test_classic_mistakes_are_named(mistake, words):
    wrong = lambda x, weight: (x.double() @ mistake(weight).t()).to(x.dtype)  # noqa: E731
    with pytest.raises(CheckFailed) as failure:
        check("quant_matmul", wrong, dtypes=["float32"], scheme="int4", m=[3, 8], quiet=True)
    assert words in failure.value.hint


def test_bytes_are_those_of_the_tensors():
    for scheme, group_size in ALL:
        _, weight = make(1, 24, 300, scheme, group_size)
        assert weight_bytes(24, 300, scheme, group_size) == weight.bytes
    assert bytes_moved(BF16, m=1, n=4096, k=11008, scheme="int4", group_size=128) == 4096 * 11008 // 2 + 4096 * 86 * 4 + 2 * (11008 + 4096)


def test_the_order_of_packing_is_the_kernels():
    """unpack4 against a second definition."""
    word = torch.tensor([[0x76543210]], dtype=torch.int32)
    assert unpack4(word).tolist() == [[PACK_ORDER.index(k) for k in range(8)]] and len(NF4) == 16 and "nf4" in FOUR_BIT


@pytest.mark.parametrize(
    "scheme, spans, rows, arch",
    [("int4", 1, 1, "sm_90a"), ("int4", 4, 8, "sm_90a"), ("lut", 1, 1, "sm_90a"), ("int8", 1, 1, "sm_90a"), ("fp8", 1, 8, "sm_90a"), ("int4", 1, 1, "sm_80")],
)
def test_compiles_without_spills(scheme, spans, rows, arch):
    resources = taken(_kernel(BF16, scheme, True, spans, rows, tuned("nf4" if scheme == "lut" else scheme, rows)), arch)
    assert resources.spill_stores == resources.stack == 0, resources


def test_without_figures_a_gemv_runs_for_few_rows(monkeypatch):
    monkeypatch.setattr(selection, "MICROSECONDS", {})
    selection.nearest.cache_clear()
    for m, scheme, chosen in ((8, "int4", "v2_gemv"), (8, "nf4", "v3_lut"), (1, "int8", "v2_gemv")):
        x, weight = make(m, 16, 64, scheme)
        assert lk.explain("quant_matmul", x, replace(weight, any_variant=False)).chosen == chosen
    x, weight = make(9, 16, 64)
    assert lk.explain("quant_matmul", x, replace(weight, any_variant=False)).chosen not in ("v2_gemv", "v3_lut")
    selection.nearest.cache_clear()


def test_the_table_is_written_from_recorded_figures(tmp_path):
    csv = tmp_path / "quant_matmul.csv"
    head = "op,variant,kind,m,n,k,scheme,group_size,dtype,ms,gpu\n"
    csv.write_text(head + "q,v1_naive,ours,1,64,32,int4,128,bfloat16,9,G\nq,v2_gemv,ours,1,64,32,int4,128,bfloat16,0.005,G\nq,cublas,peer,1,64,32,int4,128,bfloat16,0.001,G\n")
    selection.write_table(csv, tmp_path / "table.py")
    made = {}
    exec((tmp_path / "table.py").read_text(), made)
    assert made["MICROSECONDS"] == {("int4", 1, 64, 32): {"v2_gemv": 5.0}} and made["GPU"] == "G"


def test_the_table_is_that_of_the_recorded_figures(tmp_path):
    selection.write_table(measured_file("quant_matmul"), tmp_path / "table.py")
    assert (tmp_path / "table.py").read_text() == selection.TABLE.read_text(), "python -m labkernels.quant.selection data/measured/h200/quant_matmul.csv"
