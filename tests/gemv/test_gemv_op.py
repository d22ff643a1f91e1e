"""A weight times a few rows: what it costs, what it refuses, and that a row's bits are its own."""

import pytest
import torch

import labkernels as lk
from labkernels.errors import ArgumentError
from labkernels.gemv import variants
from labkernels.gemv.op import OP
from labkernels.gemv.variants import Stored, Stream, stream_for, streamed
from labkernels.quant import quantize


def inputs(m, n, k, dtype=torch.bfloat16, **options):
    return OP.make_inputs(torch.Generator().manual_seed(1), "cpu", dtype, m=m, n=n, k=k, **options)


def test_the_reference_is_the_layers_of_pytorch():
    given = inputs(3, 12, 32, torch.float32, norm=True, gated=True, residual=True)
    x, w = given["x"], given["w"]
    norm = torch.nn.RMSNorm(32, 1e-5)
    norm.weight.data = given["norm_weight"]
    gate, up = (norm(x) @ w.T).chunk(2, 1)
    torch.testing.assert_close(OP.reference(**given), torch.nn.functional.silu(gate) * up + given["residual"])


def test_bytes_and_flops_are_those_of_the_weight():
    assert OP.bytes_moved(torch.bfloat16, m=1, n=2048, k=8192) == 2 * (2048 * 8192 + 2048 + 8192)
    assert OP.flops(m=4, n=8, k=16) == 2 * 4 * 8 * 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_up_to_8_rows_a_rows_bits_do_not_depend_on_the_others(dtype):
    given = inputs(8, 48, 256, dtype, norm=True, gated=True)
    whole = lk.functional.gemv(**given)
    for rows in (slice(0, 1), slice(2, 5), slice(7, 8)):
        assert torch.equal(lk.functional.gemv(**{**given, "x": given["x"][rows]}), whole[rows])


@pytest.mark.parametrize(
    "scheme, dtype, m, gated, config",
    [
        ("int8", torch.bfloat16, 1, True, Stream(2, 4)), ("fp8", torch.bfloat16, 3, False, Stream(2, 4)), ("nf4", torch.bfloat16, 3, False, Stream(2, 4)),
        ("int4", torch.bfloat16, 1, True, Stream(2, 4)), ("int4", torch.float16, 9, False, Stream(1, 3, splits=2)),
        ("int4", torch.bfloat16, 2, True, Stream(4, 3, share=1)), ("int8", torch.float16, 5, False, Stream(4, 3, share=2)),
        ("int4", torch.bfloat16, 20, False, Stream(2, 4)),
    ],
)  # fmt: skip
def test_a_quantised_weight_goes_through_the_same_stream(scheme, dtype, m, gated, config):
    given = inputs(m, 44, 512, dtype, norm=True, gated=gated, residual=True)
    weight = quantize(given["w"].float() * torch.linspace(0.2, 2, 44)[:, None], scheme)
    exact = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    wanted = OP.reference(**exact | {"w": weight.dequantize(torch.float64)})
    found = streamed(config, **{**given, "w": weight}).double()
    assert (found - wanted).abs().max() < (0.03 if dtype == torch.bfloat16 else 0.004) * wanted.abs().max()


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_x_in_digits_is_nearer_than_bfloat16_rounds(scheme):
    """And a number that is not finite makes its row NaN, but no other."""
    given = inputs(3, 32, 512)
    weight = quantize(given["w"].float(), scheme)
    x = given["x"] * torch.logspace(-6, 6, 512).bfloat16()
    wanted = x.double() @ weight.dequantize(torch.float64).T
    found = streamed(Stream(4, 3), x, weight, out_dtype=torch.float32)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    for lost in (torch.nan, torch.inf):
        x[1, 300] = lost
        broken = streamed(Stream(4, 3), x, weight, out_dtype=torch.float32)
        assert broken[1].isnan().all() and torch.equal(broken[[0, 2]], found[[0, 2]])


@pytest.mark.parametrize("share, m", [(1, 3), (2, 9), (4, 1)])
def test_warps_that_share_a_tile_or_have_their_own_give_the_same_sums(share, m):
    given = inputs(m, 70, 512, norm=True, residual=True)
    wanted = OP.reference(**{name: value.double() if isinstance(value, torch.Tensor) else value for name, value in given.items()})
    torch.testing.assert_close(streamed(Stream(4, 3, share=share), **given).double(), wanted, atol=0.05, rtol=0.02)


def test_the_sanitizer_finds_nothing_in_a_quantised_stream(monkeypatch):
    def watched(run, config, device, tiles, args, shared, early):
        report = lk.sanitize(run, (2, config.splits), 32 * config.warps, args, shared, cluster=config.cluster, write_back=True)
        assert not report.findings, report

    monkeypatch.setattr(variants, "launch_stream", watched)
    given = inputs(2, 44, 512, norm=True)
    weight = quantize(given["w"].float(), "int4")
    found = streamed(Stream(2, 3), **{**given, "w": weight})
    wanted = OP.reference(**{**given, "w": weight.dequantize(torch.bfloat16)}).float()
    assert (found.float() - wanted).abs().max() < 0.03 * wanted.abs().max()


@pytest.mark.parametrize("splits", [1, 4])
def test_a_cluster_that_shares_k_gives_the_same_sums(splits):
    given = inputs(3, 40, 512, norm=True, residual=True)
    wanted = OP.reference(**{name: value.double() if isinstance(value, torch.Tensor) else value for name, value in given.items()})
    found = streamed(Stream(2, 4, splits=splits), **given)
    torch.testing.assert_close(found.double(), wanted, atol=0.05, rtol=0.02)


def test_the_residual_may_be_written_in_place():
    given = inputs(2, 32, 64, residual=True)
    wanted = lk.functional.gemv(**given)
    streamed(Stream(2, 4), **given, out=given["residual"])
    assert torch.equal(given["residual"], wanted)


def test_float32_may_come_out_of_16_bits():
    given = inputs(2, 32, 64)
    found = lk.functional.gemv(**given, out_dtype=torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found.bfloat16(), lk.functional.gemv(**given))


def test_nothing_to_compute_gives_zeros_or_the_residual():
    given = inputs(0, 8, 32)
    assert lk.functional.gemv(**given).shape == (0, 8)
    given = inputs(2, 8, 0, residual=True)
    assert torch.equal(lk.functional.gemv(**given), given["residual"])


@pytest.mark.parametrize(
    "change, culprit",
    [
        ({"w": torch.zeros(8, 31)}, "31"), ({"w": torch.zeros(8, 32).bfloat16().T.contiguous().T}, "contiguous"), ({"activation": "gelu"}, "gelu"),
        ({"norm_weight": torch.ones(31)}, "norm_weight"), ({"residual": torch.ones(2, 9)}, "residual"), ({"out_dtype": torch.float16}, "out_dtype"),
        ({"x": torch.zeros(2, 32).long()}, "x is int64"), ({"w": torch.zeros(7, 32).bfloat16(), "activation": "swiglu"}, "gates"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(change, culprit):
    with pytest.raises(ArgumentError, match=culprit):
        lk.functional.gemv(**{**inputs(2, 8, 32), **change})


def test_every_layer_of_llama_fits_the_stream(monkeypatch):
    monkeypatch.setattr(variants, "processor_count", lambda device: 132)
    device = torch.device("cuda", 9)  # nobody's, so that nothing is remembered for a real one
    for n, k, norm in ((3072, 2048, True), (16_384, 2048, True), (2048, 8192, False), (4096, 14_336, False), (8192, 28_672, False)):
        for m in (1, 8):
            assert stream_for(device, m, Stored(n, k), norm).shared_mem(m, Stored(n, k), norm) <= 224 * 1024
        parts = {(found.warps, found.share, found.splits) for found in (stream_for(device, m, Stored(n, k), norm) for m in range(1, 9 if k <= 8192 else 5))}
        assert len(parts) == 1, "or the bits of a row would depend on how many there are"
    assert [Stored(64, 64).column_tiles(m) for m in (1, 8, 9, 17, 64)] == [0, 1, 2, 4, 8]


def test_registers_are_enough_for_what_was_measured():
    from labkernels.cuda.variants import kernel
    from labkernels.gemv.variants import FOLDER, _tuned

    for config in {_tuned(n, k, 16) for n, k in ((3072, 2048), (16_384, 2048), (2048, 8192))}:
        for norm, gated in (("true", "true"), ("false", "false")):
            sizes = (0, *config.template)
            built = kernel(FOLDER / "v3_stream.cu", "gemv_stream", torch.bfloat16, torch.bfloat16, norm, gated, *sizes)
            assert built.resources("sm_90a").spill_store_bytes == 0
