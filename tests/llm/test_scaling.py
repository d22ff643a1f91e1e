"""The benchmark of several GPUs runs on the CPU, and its rows say what they must."""

import torch

from labkernels.llm import ranks, scaling
from labkernels.llm.corpora import corpus
from labkernels.llm.shards import prepare

SHAPE = {"vocab_size": 320, "embed_dim": 32, "head_dim": 8, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 64, "max_seq_len": 64}


def rows(data):
    changes = {"preset": "10m", "model": SHAPE, "seq_len": 32, "batch_size": 2, "device": "cpu", "precision": "float32"}
    return [scaling.measure(mode, data, 2, **changes) for mode in scaling.MODES], scaling.measure_collectives(torch.device("cpu"), [1], repeats=2)


def test_every_mode_and_every_collective_has_its_row(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} and so it goes on. " * 30)
    data = prepare(corpus(tmp_path / "text"), 300, folder=tmp_path / "tokens", progress=False)
    (first, collectives), (second, _) = ranks.run(rows, 2, data)
    assert second == [None] * 5 and [row["row"] for row in first] == list(scaling.MODES)
    by_name = {row["row"]: row for row in first}
    for name, tokens in (("alone", 64), ("apart", 128), ("ddp", 128), ("fsdp", 128), ("tensor", 64)):
        assert by_name[name]["tokens_per_s"] * by_name[name]["ms_per_step"] / 1000 - tokens < 1e-6 * tokens
    assert abs(by_name["ddp"]["loss"] - by_name["fsdp"]["loss"]) < 1e-4 and abs(by_name["alone"]["loss"] - by_name["tensor"]["loss"]) < 1e-4
    assert by_name["ddp"]["sent_gb_per_step"] > 0 == by_name["alone"]["sent_gb_per_step"]
    assert [(row["collective"], row["sent_mb"]) for row in collectives] == [("all_reduce", 1), ("all_gather", 0.5), ("reduce_scatter", 0.5)]
