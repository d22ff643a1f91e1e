"""Every operation on a stream of its own, in CUDA graphs, from several threads, and on the second GPU: what it launches goes where its tensors are."""

from __future__ import annotations

import threading

import pytest
import torch

from labkernels.lab.poison import poisoned_memory
from tests.devices.operations import NAMES, Case, cases, mapped, tensors

THREADS, TIMES = 4, 5
BUSY_CYCLES = 40_000_000  # about 20 ms


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_a_side_stream_nothing_waits_for_the_default_one(name):
    """A long kernel stands first on the default stream: what is launched there by mistake has not run when the side stream has ended."""
    default, side = torch.cuda.default_stream(), torch.cuda.Stream()
    for case in cases(name):
        inputs = case.inputs()
        wanted = case.wanted(inputs)
        torch.cuda.synchronize()
        for attempt in range(3):
            with torch.cuda.stream(side):
                given = mapped(inputs, torch.clone)
            side.synchronize()
            torch.cuda._sleep(BUSY_CYCLES * 4**attempt)
            with torch.cuda.stream(side), poisoned_memory():
                found = case.results(case.run(given), given)
                side.synchronize()
                shown = not default.query()
                case.assert_equal(found, wanted, "on a side stream")
            torch.cuda.synchronize()
            if shown:
                break
        assert shown, f"{name} {case.variant.name} waits for the default stream"


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_captured_at_first_use_on_a_stream_and_replayed_with_new_inputs(name):
    for case in cases(name):
        first, second = case.inputs(seed=0), case.inputs(seed=1)
        alike = all(a.shape == b.shape for a, b in zip(tensors(first), tensors(second), strict=True))
        others = [first, second if alike else first, first]
        wanted = [case.wanted(inputs) for inputs in others]
        torch.cuda.synchronize()
        given, graph, side = mapped(first, torch.clone), torch.cuda.CUDAGraph(), torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=side):
            result = case.run(given)
        for inputs, want in zip(others, wanted):
            for tensor, new in zip(tensors(given), tensors(inputs), strict=True):
                tensor.copy_(new)
            for tensor in tensors(result):
                if not any(tensor.data_ptr() == kept.data_ptr() for kept in tensors(given)):
                    tensor.view(torch.uint8).fill_(0x7F) if tensor.is_contiguous() and tensor.dim() else tensor.zero_()
            graph.replay()
            case.assert_equal(case.results(result, given), want, "replayed")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_from_four_threads_on_four_streams(name):
    for case in cases(name):
        from_threads(case, "cuda")


@pytest.mark.parametrize("name", ["decode_attention", "rms_norm"])
def test_from_two_threads_in_the_emulator(name):
    for case in list(cases(name, "cpu"))[-2:]:
        from_threads(case._replace(shape=case.op.check_shapes[2]) if name == "decode_attention" else case, "cpu", 2)


def from_threads(case: Case, device: str, count: int = THREADS) -> None:
    """Each thread has inputs of its own, and must get their results each time."""
    inputs = [case.inputs(device, seed) for seed in range(count)]
    wanted = [case.wanted(each) for each in inputs]
    if device == "cuda":
        torch.cuda.synchronize()
    together, wrong = threading.Barrier(count), []

    def work(number: int) -> None:
        try:
            together.wait(20)
            if device == "cpu":
                return repeat(number)
            with torch.cuda.stream(torch.cuda.Stream()):
                repeat(number)
        except BaseException as error:  # of a thread, which pytest would not see
            wrong.append(error)

    def repeat(number: int) -> None:
        given = mapped(inputs[number], torch.clone)
        for result in [case.run(given) for _ in range(TIMES)]:  # of what writes into its inputs, the same each time
            case.assert_equal(case.results(result, given), wanted[number], f"in thread {number}")

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), f"{case.op.name} {case.variant.name}: a thread still runs after 30 s"
    if wrong:
        raise wrong[0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_the_second_gpu_while_the_first_is_current(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for case in cases(name):
        inputs = case.inputs()
        wanted = case.wanted(inputs)
        given = mapped(inputs, lambda tensor: tensor.to("cuda:1"))
        torch.cuda.synchronize(0)
        before = torch.cuda.memory_allocated(0)
        torch.cuda.reset_peak_memory_stats(0)
        for _ in range(2):  # the second time with what the first has made
            again = mapped(given, torch.clone)
            found = case.results(case.run(again), again)
            torch.cuda.synchronize(1)
            what = f"{name} {case.variant.name}"
            assert all(result.device == torch.device("cuda", 1) for result in found), what
            assert torch.cuda.current_device() == 0 and torch.cuda.max_memory_allocated(0) == before, f"{what} takes memory of the other GPU"
            case.assert_equal([result.to("cuda:0") for result in found], wanted, "on the second GPU")
            del again, found
            torch.cuda.synchronize(0)
            torch.cuda.reset_peak_memory_stats(0)
            before = torch.cuda.memory_allocated(0)


@pytest.mark.gpu
def test_a_captured_graph_on_the_second_gpu_while_the_first_is_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for name in ("ffn", "decode_attention", "quant_matmul"):  # which count in memory of their own
        for case in cases(name):
            inputs = mapped(case.inputs(), lambda tensor: tensor.to("cuda:1"))
            wanted = case.wanted(inputs)
            torch.cuda.synchronize(1)
            with torch.cuda.device(1):
                graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
                with torch.cuda.graph(graph, stream=side):
                    with torch.cuda.device(0):
                        result = case.run(inputs)
                for _ in range(2):
                    graph.replay()
                torch.cuda.synchronize(1)
            case.assert_equal(case.results(result, inputs), wanted, "captured on the second GPU")
