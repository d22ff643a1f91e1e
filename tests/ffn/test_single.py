"""v6_rows and v6_boxes of `ffn`, one kernel for both products: strips, slots and tokens of every number, float32 and 16 bits; GPU: graphs, streams, repetition."""

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.ffn import boxes, single
from labkernels.ffn.reference import reference
from labkernels.ffn.single import Config, best_config, configured
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = Config(tokens=16, units=24, columns_1=64, rows=16, columns_2=32, slots=4, gated=True)


def network(tokens, embed, ffn, activation="swiglu", dtype=torch.bfloat16, device="cpu"):
    generator = torch.Generator().manual_seed(tokens)
    rows = 2 * ffn if activation == "swiglu" else ffn
    sizes = ((tokens, embed), 1), ((rows, embed), embed**-0.5), ((embed, ffn), ffn**-0.5), ((rows,), 1), ((embed,), 1)
    return [(scale * torch.randn(size, generator=generator)).to(device, dtype) for size, scale in sizes]


def assert_right(y, tensors, activation="swiglu", error=4e-3):
    want = reference(*(t.double() for t in tensors), activation)
    assert y.shape == want.shape and (y - want).norm() <= error * want.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("phases", [(3,), (1, 2)])
def test_many_strips_a_block_and_partial_ones_at_the_end(phases, device):
    for tokens, embed, ffn in ((1, 96, 32), (7, 160, 256), (16, 64, 96)):
        tensors = network(tokens, embed, ffn, device=device)
        assert_right(configured(SMALL, *tensors, "swiglu", phases=phases, blocks=1), tensors)


def test_float32_in_the_emulator_is_clean_and_exact():
    tensors = network(5, 96, 64, dtype=torch.float32)
    with sanitizing():
        y = configured(Config(8, 24, 32, 16, 32, 4, True, 4), *tensors, "swiglu")
    assert_right(y, tensors, error=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_each_time_and_progress_is_left_at_zero(device, monkeypatch):
    tensors, used, progress = network(9, 160, 256, device=device), [], single.progress
    monkeypatch.setattr(single, "progress", lambda device: used.append(progress(device)) or used[-1])
    results = [configured(SMALL, *tensors, "swiglu") for _ in range(3)]
    assert all(torch.equal(results[0], other) for other in results) and len(used) == 3 and not any(each.any() for each in used)


def test_each_block_has_one_strip_of_each_where_that_fits():
    config = best_config(16, 4096, 11008, True, 132)
    assert (config.units, config.rows) == (88, 32) and config.slots % single.TEAMS == 0
    for embed, ffn, gated, item in ((4096, 11008, True, 2), (8192, 28672, True, 2), (512, 2048, False, 2), (64, 32, False, 4), (4096, 14336, True, 4)):
        for tokens in (1, 5, 16):
            config = best_config(tokens, embed, ffn, gated, 132, item)
            assert config.tokens >= tokens and config.shared_mem <= single.SHARED_BYTES and config.columns_1 % 32 == config.columns_2 % 32 == 0


@pytest.mark.parametrize("dtype, tokens", [(torch.bfloat16, 4), (torch.bfloat16, 16), (torch.float32, 16)])
def test_compiles_without_spills(dtype, tokens):
    config = best_config(tokens, 4096, 11008, True, 132, dtype.itemsize)
    resources = taken(single._kernel(config, dtype, "swiglu"), "sm_90a")
    assert resources.spill_stores == resources.stack == 0
    assert config.shared_mem + resources.shared <= 227 * 1024


def test_refusals_are_told():
    x, w1, w2, *_ = network(17, 64, 32)
    assert single.V6_ROWS.accepts(x, w1, w2, activation="swiglu") == "takes at most 16 tokens"
    assert single.V6_ROWS.accepts(x[:3, :40], w1[:, :40], w2[:40], activation="swiglu") == "takes embed and ffn that are multiples of 32"
    assert "16 bytes" in single.V6_ROWS.accepts(torch.ones(3, 65).bfloat16()[:, 1:], w1, w2, activation="swiglu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("phases", [(3,), (1, 2)])
def test_boxes_of_every_number_and_partial_ones(phases, device):
    config = boxes.Config(16, 16, 1, 16, 1, 4, True)
    wide = boxes.Config(8, 16, 3, 16, 5, 2, True)
    for tokens, embed, ffn, config in ((1, 72, 40, config), (16, 200, 328, config), (7, 256, 384, wide), (3, 64, 192, wide)):
        tensors = network(tokens, embed, ffn, device=device)
        first = boxes.configured(config, *tensors, "swiglu", phases=phases, blocks=1)
        assert_right(first, tensors)
        assert torch.equal(first, boxes.configured(config, *tensors, "swiglu", phases=phases, blocks=1))


def test_boxes_compile_without_spills():
    config = boxes.best_config(1, 4096, 11008, True, 132)
    assert (config.units, config.boxes_1, config.rows, config.boxes_2, config.slots) == (88, 3, 32, 7, 6)
    resources = taken(boxes._kernel(config, torch.bfloat16, "swiglu"), "sm_90a")
    assert resources.spill_stores == resources.stack == 0
    assert config.shared_mem + resources.shared <= 227 * 1024


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_llamas_size_on_a_gpu(dtype):
    for tokens in (1, 3, 8, 16):
        tensors = network(tokens, 4096, 11008, dtype=dtype, device="cuda")
        assert_right(configured(None, *tensors, "swiglu"), tensors, error=4e-3 if dtype == torch.bfloat16 else 1e-6)
        if dtype == torch.bfloat16:
            assert_right(boxes.configured(None, *tensors, "swiglu"), tensors)


@pytest.mark.gpu
@pytest.mark.parametrize("configured", [single.configured, boxes.configured])
def test_captured_in_a_graph_it_runs_on_any_stream_beside_others(configured):
    tensors = network(4, 1024, 2816, device="cuda")
    want = configured(None, *tensors, "swiglu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [configured(None, *tensors, "swiglu") for _ in range(3)]
    streams, results = [torch.cuda.Stream() for _ in range(3)], []
    torch.cuda.synchronize()
    for turn in range(30):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(configured(None, *tensors, "swiglu"))
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(want, one) for one in [*captured, *results])


@pytest.mark.gpu
def test_early_launches_see_what_was_written_before_them():
    x, w1, w2, b1, b2 = network(2, 1024, 2816, device="cuda")
    for turn in range(20):
        chain, want = x, x
        for _ in range(4):  # each begins before the one before has ended, and reads what that one writes
            chain = boxes.v6_boxes(chain, w1, w2, b1, b2, "swiglu")
            want = boxes.v6_two_kernels(want, w1, w2, b1, b2, "swiglu")
        assert torch.equal(chain, want)
        torch.neg(w1, out=w1)  # PyTorch counts this: the next launch waits
        assert_right(boxes.v6_boxes(x, w1, w2, b1, b2, "swiglu"), (x, w1, w2, b1, b2))
