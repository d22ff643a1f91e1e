"""When a weight has rested: not after PyTorch or an optimiser has written to it, nor a new one in an old one's place; a cache does not matter."""

import pytest
import torch

from labkernels.cuda import settled as module
from labkernels.cuda.settled import launch_beside, resting, settled, wrote
from labkernels.kvcache import cache_append
from labkernels.llm.training.optim import AdamW, adamw_kernel
from labkernels.quant import early_launch, quantize


@pytest.fixture(autouse=True)
def stream(monkeypatch):
    """A GPU that knows early launches, with a stream that is captured or not; tensors are on the CPU."""
    current = type("Stream", (), {"cuda_stream": 0, "captured": False})
    monkeypatch.setattr(module, "can_launch_early", lambda device: True)
    monkeypatch.setattr(module, "capturing", lambda device: current.captured)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    return current


def settle(*weights):
    settled(*weights)
    assert settled(*weights)


def test_a_weight_that_was_written_to_has_not_settled():
    first, second = torch.ones(2), torch.ones(3)
    assert [settled(first, second) for _ in range(3)] == [False, True, True]
    second.add_(1)
    assert [settled(first, second) for _ in range(2)] == [False, True]
    assert not settled(first, torch.ones(3)), "another weight beside it"
    with torch.inference_mode():
        assert not any(settled(weight) for weight in [torch.ones(2)] * 2), "counts no versions"


def test_a_new_weight_in_an_old_ones_place_has_not_settled():
    """The same memory, version and Python's id: what allocators make of a weight that is computed anew each time."""
    first, memory = torch.ones(2), torch.ones(3)
    for turn in range(4):
        second = memory.data
        assert not settled(first, second), turn
        del second


def test_each_stream_has_to_wait_once(stream):
    weight = torch.ones(2)
    settle(weight)
    stream.cuda_stream = 1
    assert not settled(weight)
    stream.captured = True
    assert not settled(weight)
    with resting():
        assert settled(weight)


def test_the_kernel_of_an_optimiser_unsettles_what_it_writes():
    weight, gradient, other = torch.ones(8).bfloat16(), torch.ones(8).bfloat16(), torch.ones(3)
    m, v, master = torch.zeros(8), torch.zeros(8), torch.ones(8)
    settle(weight, other)
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "decay": 0.0, "corrections": torch.tensor([10.0, 4.5])}
    adamw_kernel(weight, gradient, m, v, master, None, False, 1, **numbers)
    assert settled(other) and not settled(weight, other)
    assert all(tensor._version for tensor in (weight, m, v, master)) and gradient._version == 0


def test_autograd_notices_that_a_weight_was_overwritten():
    weight, x = torch.nn.Parameter(torch.randn(8, 8)), torch.randn(8, 8, requires_grad=True)
    loss = (x @ weight).sum()
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "decay": 0.0, "corrections": torch.tensor([10.0, 4.5])}
    with torch.no_grad():
        adamw_kernel(weight, torch.ones(8, 8), torch.zeros(8, 8), torch.zeros(8, 8), None, None, False, 1, **numbers)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_training_unsettles_and_the_answers_after_it_are_early_again(dtype):
    weight = torch.nn.Parameter(torch.ones(4, 4, dtype=dtype))
    settle(weight)
    weight.grad = torch.ones_like(weight)
    AdamW([weight]).step()
    assert [settled(weight) for _ in range(2)] == [False, True]


def test_a_cache_that_is_written_to_unsettles_no_weight():
    weight, caches = torch.ones(2), [torch.zeros(2, 1, 16, 16) for _ in "kv"]
    settle(weight)
    for slot in range(3):
        cache_append(torch.ones(1, 1, 16), torch.ones(1, 1, 16), *caches, torch.tensor([slot]))
        assert settled(weight)
    assert all(half._version == 3 for half in caches)


def test_a_quantised_weight_settles_by_the_same_rule():
    weight, launches = quantize(torch.randn(16, 64), "nf4", 64), []

    def kernel(grid, block, args, shared_mem, cluster, early):
        launches.append(early)

    def launch():
        early_launch.launch(kernel, weight, (1, 1), 32, (), 0)
        return launches[-1]

    assert [launch(), launch()] == [False, True]
    for tensor in (weight.packed, weight.scales, weight.codebook):
        wrote(tensor)
        assert [launch(), launch()] == [False, True]


def test_a_launch_that_fails_has_waited_for_nothing():
    weight = torch.ones(2)

    def refuses(*_):
        raise ValueError

    with pytest.raises(ValueError):
        launch_beside(refuses, (weight,), 1, 32, ())
    assert not settled(weight)


def test_wrote_counts_up_what_can_be_counted():
    weight = torch.ones(2)
    with torch.inference_mode():
        inferred = torch.ones(2)
        wrote(weight, None, inferred)
    assert weight._version == 1


def test_compiled_a_writer_is_one_operator_and_its_version_is_counted():
    caches, new, slots = [torch.zeros(2, 1, 16, 16) for _ in "kv"], torch.ones(1, 1, 16), torch.tensor([3])
    compiled = torch.compile(lambda k, v: cache_append(new, new, k, v, slots), fullgraph=True, backend="aot_eager")
    compiled(*caches)
    assert all(half._version and half.sum() == 16 for half in caches)
