"""What the engine is measured with: the peer computes the same model, and bytes a token are those counted by hand."""

import dataclasses

import pytest
import torch

from labkernels.llm.inference.bench_engine import _parser, bench, main, measure, peer_peak_bytes, random_model, read_bytes
from labkernels.llm.config import ModelConfig
from labkernels.llm.inference.engine import Engine
from labkernels.llm.inference.peers import CompiledPeer, HuggingFacePeer

CONFIG = ModelConfig(80, 64, 2, 4, 2, 128, max_seq_len=128)


def test_the_peer_writes_what_the_engine_writes():
    model = random_model(CONFIG, torch.float32, "cpu")
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    prompts = torch.randint(0, 80, (2, 9), generator=torch.Generator().manual_seed(1))
    found = CompiledPeer(model, 2, 64, mode=None).generate(prompts, 12)
    assert found.tolist() == [list(one.tokens) for one in Engine(model).generate(prompts.tolist(), 12)]


@pytest.mark.parametrize("how", [None, {"backend": "eager"}])
def test_hugging_faces_tokens_are_those_of_its_own_generate_call_after_call(how):
    torch.manual_seed(0)
    peer = HuggingFacePeer(CONFIG, torch.float32, "cpu", 64, how)
    for parameter in peer.model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    prompts = torch.randint(0, 80, (2, 9), generator=torch.Generator().manual_seed(1))
    peer.model.generation_config.eos_token_id = None  # else its generate avoids, or ends at, token 2
    greedy = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    expected = peer.model.generate(prompts, attention_mask=torch.ones_like(prompts), **greedy)[:, 9:]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert peer.generate(prompts, 3).tolist() == expected[:, :3].tolist()
    assert peer.generate(prompts.flip(0), 12).tolist() == expected.flip(0).tolist()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs == (how is not None), "a longer answer compiles nothing"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "quantize, bytes_of",
    [(None, lambda n, k: 2 * n * k), ("int8", lambda n, k: n * k + 4 * n), ("int4", lambda n, k: n * k // 2 + 4 * n * k // 128)],
)
def test_bytes_a_token_are_those_counted_by_hand(tied, quantize, bytes_of):
    config = ModelConfig(80, 128, 2, 4, 2, 256, max_seq_len=128, tie_embeddings=tied)
    model = random_model(config, torch.bfloat16, "cpu", quantize)
    layer = sum(bytes_of(n, k) for n, k in ((256, 128), (128, 128), (512, 128), (128, 256)))
    weights = 2 * layer + 2 * (2 * 2 + 1) * 128 + 2 * 80 * 128  # norms; the head, or the embedding where it is the head
    cache = Engine(model, cache_tokens=64).cache
    assert read_bytes(model, 3, 10, cache) == weights + 3 * 10 * 2 * 2 * 2 * 32 * 2


def measured(monkeypatch, new: int, chunk: int = 16, batch: int = 4) -> dict:
    """Of prompts of eight tokens in passes of two: the first ones write on while the others are read. A pass takes a second."""
    engine = Engine(random_model(CONFIG, torch.float32, "cpu"), max_batch=batch, chunk_tokens=chunk)
    steps, step = [0], engine.step

    def counting():
        steps[0] += 1
        return step()

    monkeypatch.setattr(engine, "step", counting)
    monkeypatch.setattr("labkernels.llm.inference.bench_engine.time.perf_counter", lambda: float(steps[0]))
    found = measure(engine, batch, 8, new)
    assert [len(tokens) for tokens in found["drawn"]] == [new] * batch
    return found


def test_tokens_a_second_are_those_that_come_while_all_are_running(monkeypatch):
    """Two have a token more than the others when these have their first: the last step is theirs alone, and is not counted."""
    found = measured(monkeypatch, 12)
    assert found["tokens_per_s"] == 4 and found["ms_per_token"] == 1000 and "note" not in found


def test_where_few_steps_are_all_requests_what_comes_after_the_last_first_token_counts_and_a_note_says_of_how_many(monkeypatch):
    found = measured(monkeypatch, 6)
    assert found["tokens_per_s"] == (4 * 6 - 2 * 3 - 2 * 2) / 4 and found["note"] == "on average 3.5 of 4 running"


@pytest.mark.parametrize("new", [6, 30])
def test_all_tokens_after_the_first_count_where_all_end_together(monkeypatch, new):
    for batch in (1, 4):
        found = measured(monkeypatch, new, chunk=64, batch=batch)
        assert found["tokens_per_s"] == batch and "note" not in found


def test_a_table_has_a_row_for_each_rung_and_peer_beside_estimate_and_limit(tmp_path, monkeypatch):
    """On the CPU, so that no line of what is recorded on a GPU runs there for the first time."""
    monkeypatch.setattr(ModelConfig, "preset", lambda name, **_: CONFIG)
    common = ["tiny", "--prompt", "8", "--new", "4", "--out", str(tmp_path / "engine.csv")]
    bench(_parser().parse_args([*common, "--runners", "cached", "fused", "--peers", "eager", "hugging-face"]), torch.device("cpu"), 100.0)
    rows = bench(_parser().parse_args([*common, "--runners", "cached", "--quantize", "int8", "--batch", "2", "--append"]), torch.device("cpu"), 100.0)
    assert [row["runner"] for row in rows] == ["cached", "fused", "eager", "hugging-face", "cached"]
    assert all(row["tokens_per_s"] > 0 and 0 < row["estimate_gb"] < 0.01 for row in rows)
    assert 0 < rows[0]["share_of_limit"] < 1 and rows[4]["weights"] == "int8" and rows[4]["bytes_per_step"] < 2 * rows[0]["bytes_per_step"]
    assert len((tmp_path / "engine.csv").read_text().splitlines()) == 1 + len(rows)


def test_hugging_faces_memory_is_without_that_of_our_model_beside_it():
    model = random_model(CONFIG, torch.bfloat16, "cpu")
    tied = random_model(dataclasses.replace(CONFIG, tie_embeddings=True), torch.bfloat16, "cpu")
    for one in (model, tied):
        ours = sum(t.numel() * t.element_size() for t in (*one.parameters(), *one.buffers()))
        assert peer_peak_bytes(10**9, one, "hugging-face") == 10**9 - ours
        assert peer_peak_bytes(10**9, one, "reduce-overhead") == peer_peak_bytes(10**9, one, "early") == 10**9


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="has none"):
        main(["10m"])
