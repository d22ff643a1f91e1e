"""v6 of `quant_matmul`, the stream by the copy engine: every scheme at partial tiles, warps without a share of k, slots that are used again."""

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.lab.check import check
from labkernels.quant import quantize
from labkernels.quant.v6_variants import FORMATS, VARIANTS, Stream, _kernel, stream_for, streamed, v6_stream
from tests.quant.test_quant_matmul import assert_right, make

BF16, F16 = torch.bfloat16, torch.float16
CASES = [("int4", 128, BF16, 1), ("int4", 128, F16, 1), ("int4", 32, BF16, 3), ("int4", 64, BF16, 8), ("nf4", 64, BF16, 2), ("codebook", 128, F16, 8),
         ("int8", None, BF16, 1), ("fp8", None, F16, 5)]  # fmt: skip


@pytest.mark.parametrize("scheme, group_size, dtype, m", CASES)
def test_schemes_at_partial_tiles(scheme, group_size, dtype, m):
    for n, k in ((72, 300), (48, 1040), (136, 77)):
        x, weight = make(m, n, k, scheme, group_size, dtype)
        first = v6_stream(x, weight)
        assert_right(first, x, weight)
        assert torch.equal(first, v6_stream(x, weight))


@pytest.mark.gpu
def test_passes_the_whole_check():
    check("quant_matmul", "v6_stream", quiet=True)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", ["int4", "nf4", "int8"])
def test_a_chain_launched_early_gives_the_same_bits_as_one_that_waits(scheme):
    """Each product needs the one before; weights change between. What begins too early reads an old x or an old weight."""
    generator = torch.Generator("cuda").manual_seed(0)
    weights = [quantize(torch.randn(4096, 4096, generator=generator, device="cuda") / 64, scheme) for _ in range(3)]
    x = torch.randn(1, 4096, generator=generator, device="cuda").bfloat16()
    for _ in range(5):
        results = []
        for wait in (False, True):
            y = x
            for i in range(12):
                y = v6_stream(y, weights[i % 3])
                if wait:
                    torch.cuda.synchronize()
            results.append(y)
        assert torch.equal(*results) and results[0].isfinite().all() and results[0].any()
        for weight in weights:
            weight.packed.copy_(weight.packed.roll(1, 0))


@pytest.mark.parametrize("config", [Stream(1, 1), Stream(2, 3), Stream(4, 2)])
def test_any_warps_and_slots(config):
    """k of 600 has three units: of four warps one has none."""
    x, weight = make(2, 200, 600)
    assert_right(streamed(config, x, weight), x, weight)
    assert_right(streamed(config, x, weight, lut=True), x, weight)


def test_every_row_and_column_comes_to_its_place():
    """x is one column after the other of the unit matrix: the result is the weight, whose rows change places in the fragments."""
    _, weight = make(1, 48, 512)
    for first in range(0, 512, 72):
        x = torch.eye(512, dtype=BF16)[first : first + 8]
        want = weight.dequantize()[:, first : first + 8].t()
        torch.testing.assert_close(v6_stream(x, weight).float(), want, rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("scheme, group_size, m", [("int4", 128, 1), ("nf4", 32, 2)])
def test_clean_under_the_sanitizer(scheme, group_size, m):
    x, weight = make(m, 200, 600, scheme, group_size)
    with sanitizing():
        assert_right(streamed(Stream(2, 2), x, weight), x, weight)


@pytest.mark.parametrize("scheme, spans, rows", [("int4", 1, 1), ("int4", 4, 8), ("nf4", 1, 1), ("nf4", 1, 8), ("int8", 1, 1)])
def test_compiles_without_spills(scheme, spans, rows):
    resources = _kernel(BF16, FORMATS[scheme], spans, rows, Stream(8 if spans * rows > 8 else 16, 2)).resources("sm_90a")
    assert resources.spill_store_bytes == resources.stack_bytes == 0, resources


def test_what_it_refuses():
    accepts = VARIANTS["v6_stream"].accepts
    assert accepts(*make(1, 40, 100)) is None and stream_for(*make(8, 40, 100)).ahead >= 2
    assert accepts(*make(9, 40, 100)) == "up to 8 rows of x"
    assert "multiples of 8" in accepts(*make(1, 20, 100))
    x, weight = make(1, 40, 100)
    assert "bfloat16" in accepts(x.float(), weight)
