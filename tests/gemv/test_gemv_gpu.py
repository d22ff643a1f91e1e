"""The stream on a GPU: launched early in a chain, inside a CUDA graph, it gives what it gives alone."""

import pytest
import torch

from labkernels.gemv.op import OP
from labkernels.gemv.variants import Stored, stream_for, streamed

pytestmark = pytest.mark.gpu


def chain(layers, x, early):
    """Each layer's result is the next one's input and the residual is written in place, as in a decode step."""
    hidden = x.clone()
    for up, down, gain in layers:
        gated = _run(hidden, up, gain, None, "swiglu", None, early)
        _run(gated, down, None, hidden, None, hidden, early)
    return hidden


def _run(x, w, gain, residual, activation, out, early):
    config = stream_for(x.device, len(x), Stored.of(w), gain is not None)
    return streamed(config, x, w, gain, residual, activation, 1e-5, None, out, early=early)


@pytest.mark.parametrize("m", [1, 5, 16])
def test_early_launches_in_a_graph_change_no_bit(m):
    torch.manual_seed(0)
    normal = lambda *shape, std=1.0: (std * torch.randn(*shape, device="cuda")).bfloat16()  # noqa: E731
    layers = [(normal(16_384, 2048, std=0.02), normal(2048, 8192, std=0.01), 1 + normal(2048, std=0.1)) for _ in range(12)]
    x = normal(m, 2048)
    wanted = chain(layers, x, early=False)
    for _ in range(3):
        assert torch.equal(chain(layers, x, early=True), wanted)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        found = chain(layers, x, early=True)
    for _ in range(20):
        found.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("k", [2048, 8192])
def test_a_rows_bits_are_its_own_at_llamas_sizes(k):
    given = OP.make_inputs(torch.Generator().manual_seed(1), "cuda", torch.bfloat16, m=8, n=2048, k=k)
    whole = OP.run(**given)
    for rows in (slice(0, 1), slice(3, 8)):
        assert torch.equal(OP.run(**{**given, "x": given["x"][rows].contiguous()}), whole[rows])
