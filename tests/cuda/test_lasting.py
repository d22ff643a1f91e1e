"""Counters that are zero: a stream's or a captured launch's own, alive as long as graphs are, new on the CPU; what lasts is in no graph's pool."""

import contextlib
import threading

import pytest
import torch

import labkernels as lk
from labkernels.cuda import lasting
from labkernels.ffn import boxes
from labkernels.kvcache.decode_attention_variants import VARIANTS as DECODING
from labkernels.llm import rope_attention
from labkernels.quant import quantize, v4_variants
from labkernels.rope import rope_frequencies, rope_table

COUNT = """
    extern "C" __global__ void count(int* counters, int* last, int n) {  // who comes last writes how many came before, and leaves zeros
        const int before = atomicAdd(&counters[threadIdx.x], 1);
        if (before == n - 1) last[threadIdx.x] = before, counters[threadIdx.x] = 0;
    }"""


class Gpu:
    """A reserve of zeros in the CPU's memory, whose streams are numbers, and captures what it is told to."""

    def __init__(self, monkeypatch):
        self.captures, self.stream = False, 1
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.captures)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: type("Stream", (), {"cuda_stream": self.stream}))
        self.reserve = lasting._Reserve(torch.device("cpu"))

    def take(self, count=300, turns=1, captured=False) -> range:
        """The addresses of what a launch gets."""
        self.captures = captured
        taken = self.reserve.take(count, turns)
        assert taken.shape[0] >= count and not taken.any()
        return range(taken.data_ptr(), taken.data_ptr() + 4 * count)


@pytest.fixture
def gpu(monkeypatch):
    return Gpu(monkeypatch)


def apart(*taken: range) -> bool:
    ordered = sorted(taken, key=lambda each: each.start)
    return all(one.stop <= other.start for one, other in zip(ordered, ordered[1:]))


def inside(taken: range, reserve: lasting._Reserve) -> bool:
    return any(kept.data_ptr() <= taken.start and taken.stop <= kept.data_ptr() + 4 * len(kept) for kept in reserve.kept)


def test_a_stream_gets_the_same_again_and_another_one_others(gpu):
    first = gpu.take()
    assert gpu.take() == first and gpu.take(200).start == first.start
    turns = [gpu.take(3, turns=2) for _ in range(4)]
    assert turns[:2] == turns[2:] and apart(first, *turns[:2])
    gpu.stream = 2
    assert apart(first, *turns[:2], gpu.take(), gpu.take(3, turns=2), gpu.take(3, turns=2))


def test_each_captured_launch_has_its_own(gpu):
    own = gpu.take()
    captured = [gpu.take(count, captured=True) for count in (300, 1, 33, 300)]
    assert apart(own, *captured) and gpu.take() == own


def test_what_graphs_were_given_stays_though_more_is_wanted_than_there_is(gpu):
    own = gpu.take()
    captured = [gpu.take(captured=True) for _ in range(10)]
    large = [gpu.take(count) for count in (lasting.RESERVE, 3 * lasting.RESERVE)]
    later = [gpu.take(captured=True) for _ in range(10)]
    assert apart(own, *captured, *large, *later), "an outgrown stretch is kept as well: kernels and graphs may be on their way"
    assert all(inside(each, gpu.reserve) for each in (own, *captured, *large, *later))


def test_captures_do_not_find_the_reserve_empty_where_other_launches_stand_between(gpu):
    gpu.take()
    captured = []
    for _ in range(6):
        captured += [gpu.take(4000, captured=True) for _ in range(100)]
        gpu.take()
    assert len(captured) * 4000 > 2 * lasting.RESERVE and apart(*captured) and all(inside(each, gpu.reserve) for each in captured)


def test_what_is_first_taken_while_capturing_is_the_graphs_alone(gpu, monkeypatch):
    made = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *given, **more: made.append(zeros(*given, **more)) or made[-1])
    first, second = gpu.take(captured=True), gpu.take(3, turns=2, captured=True)
    assert len(made) == 3 and apart(first, second), "each launch's set to zero in the graph; and something after what is counted in before the end of that"
    own = gpu.take()
    assert apart(own, first, second) and gpu.take() == own


def test_two_threads_never_get_the_same(gpu):
    taken, gpu.captures = [], False
    gpu.take()
    gpu.captures = True
    at_once = threading.Barrier(4)

    def capture():
        at_once.wait()
        taken.extend(gpu.reserve.take(32, 1).data_ptr() for _ in range(300))

    threads = [threading.Thread(target=capture) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == len(taken) == 1200


def test_it_is_the_tensors_device_that_is_asked_whether_it_captures(monkeypatch):
    current = [0]

    @contextlib.contextmanager
    def device(other):
        before, current[0] = current[0], other.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current[0] == 1)
    assert [lasting.capturing(torch.device("cuda", index)) for index in (0, 1, 2)] == [False, True, False]
    assert current == [0]


def test_on_the_cpu_they_are_new_each_time():
    first = lasting.counters(3, torch.device("cpu"))
    first.fill_(1)
    assert not lasting.counters(3, torch.device("cpu")).any()


def test_what_lasts_is_made_on_another_thread_and_is_no_inference_tensor():
    with torch.inference_mode():
        where = []
        made = lasting.lasting(lambda: where.append(threading.current_thread()) or torch.ones(2), torch.device("cpu"))
    assert where != [threading.current_thread()] and not made.is_inference()
    with pytest.raises(ZeroDivisionError):
        lasting.lasting(lambda: 1 / 0, torch.device("cpu"))


def test_ends_of_sequences_made_while_capturing_are_the_graphs_alone(monkeypatch):
    monkeypatch.setattr(rope_attention, "_ends", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(rope_attention, "lasting", lambda make, device: make())
    monkeypatch.setattr(torch, "arange", lambda *given, device, arange=torch.arange, **more: arange(*given, **more))  # a GPU's in the CPU's memory
    device, captures = torch.device("cuda", 0), True
    captured = rope_attention._equal_ends(3, 5, device)
    captures = False
    own = rope_attention._equal_ends(3, 5, device)
    assert own is not captured and own.tolist() == captured.tolist() == [0, 5, 10, 15]
    for seq in range(1, 100):
        rope_attention._equal_ends(1, seq, device)
    captures = True
    assert rope_attention._equal_ends(3, 5, device) is own, "kept for good: the address may be in a graph"


@pytest.mark.gpu
@pytest.mark.parametrize("warm", [True, False])
def test_on_a_gpu_graphs_and_streams_count_beside_each_other(warm, monkeypatch):
    """Four graphs on four streams beside eager launches, with a reserve and without."""
    lasting._reserve.cache_clear()
    kernel, device, blocks = lk.Kernel(COUNT, "count"), torch.device("cuda", torch.cuda.current_device()), 64

    def launch(last):
        kernel(blocks, 128, (lasting.counters(128, device), last, blocks))

    results = [torch.zeros(128, dtype=torch.int32, device=device) for _ in range(9)]
    if warm:
        launch(results[0])
    graphs = []
    for result in results[1:5]:
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            for _ in range(20):
                launch(result)
    streams = [torch.cuda.Stream() for _ in range(8)]
    torch.cuda.synchronize()
    for _ in range(20):
        for stream, graph in zip(streams, graphs):
            with torch.cuda.stream(stream):
                graph.replay()
        for stream, result in zip(streams[4:], results[5:]):
            with torch.cuda.stream(stream):
                launch(result)
    torch.cuda.synchronize()
    assert all((result == blocks - 1).all() for result in results[1:])
    assert not any(each.any() for each in lasting._reserve(device.index).kept)


def products(device):
    """quant_matmul, its tiles cut along k."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=generator) for shape in ((5, 4000), (1330, 4000)))
    x, weight = x.to(device, torch.bfloat16), quantize(w, "int4", 128).to(device)
    return lambda: v4_variants.configured("64x8", x, weight, blocks=100)


def decoding(device):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in ((3, 8, 64), (3, 2, 4096, 64), (3, 2, 4096, 64)))
    lengths = torch.tensor([4096, 77, 1030], dtype=torch.int32, device=device)
    return lambda: DECODING["v6_guess"].fn(q, k, v, lengths)


def feed_forward(device):
    generator = torch.Generator().manual_seed(0)
    x, w1, w2 = (0.1 * torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in ((4, 1024), (5632, 1024), (1024, 2816)))
    return lambda: boxes.v6_boxes(x, w1, w2, activation="swiglu")


@pytest.mark.gpu
@pytest.mark.parametrize("made", [products, decoding, feed_forward])
def test_on_a_gpu_a_kernel_that_counts_runs_beside_graphs_of_itself_that_were_captured_first(made):
    lasting._reserve.cache_clear()
    launch = made(torch.device("cuda", torch.cuda.current_device()))
    graphs, results, streams = [], [], [torch.cuda.Stream() for _ in range(4)]
    for _ in range(2):
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            results += [launch() for _ in range(3)]
    want = launch()
    torch.cuda.synchronize()
    for _ in range(30):
        for stream, graph in zip(streams, graphs):
            with torch.cuda.stream(stream):
                graph.replay()
        for stream in streams[2:]:
            with torch.cuda.stream(stream):
                results.append(launch())
    torch.cuda.synchronize()
    assert all(torch.equal(result, want) for result in results)


@pytest.mark.gpu
def test_on_a_gpu_what_is_first_wanted_inside_of_torch_compiles_graphs_stays(monkeypatch):
    """reduce-overhead: a run that warms up, one that is captured, then replays, with other work between them that would take memory given back."""
    lasting._reserve.cache_clear()
    monkeypatch.setattr(rope_attention, "_ends", {})
    device = torch.device("cuda", torch.cuda.current_device())
    qkv, angles = torch.randn(2, 128, 6 * 64, device=device).bfloat16(), rope_table(rope_frequencies(64), 128).to(device)
    layer = lk.nn.QuantLinear.from_linear(torch.nn.Linear(256, 4000, bias=False), "int4").to(device, torch.bfloat16)

    def both(qkv):
        out = torch.ops.labkernels.rope_attention(qkv, angles, None, None, 4, 1)[0]
        return layer(out[:, :16].reshape(32, 256))

    compiled = torch.compile(both, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for turn in range(6):
            qkv.normal_()
            got = compiled(qkv).clone()
            junk = [torch.full((1 << size,), 7, dtype=torch.int32, device=device) for size in range(4, 20)]
            torch.testing.assert_close(got, both(qkv), msg=str(turn))
            del junk


@pytest.mark.gpu
def test_on_a_gpu_the_reserve_lies_in_no_pool_of_a_graphs():
    pool, device = torch.cuda.MemPool(), torch.device("cuda", torch.cuda.current_device())
    with torch.cuda.use_mem_pool(pool):
        there = torch.zeros(1 << 22, device=device)
        reserve = lasting._Reserve(device)
        taken = reserve.take(100, 1)
        ends = lasting.lasting(lambda: torch.arange(5, device=device), device)
    ranges = [(segment["address"], segment["address"] + segment["total_size"]) for segment in pool.snapshot()]
    assert any(first <= there.data_ptr() < last for first, last in ranges)
    assert not any(first <= each.data_ptr() < last for first, last in ranges for each in (taken, ends))
