"""Training on several processes: the curve of one, in each mode; checkpoints that go on on another number; a rank that is killed."""

import math
import os

import pytest
import torch
from torch.distributed.fsdp import fully_shard  # noqa: F401  imported once, before ranks are forked

from labkernels.errors import ArgumentError
from labkernels.llm import ranks
from labkernels.llm.checkpoint import CheckpointStore
from labkernels.llm.corpora import corpus
from labkernels.llm.distributed import DistributedTrainer, RankLost
from labkernels.llm.shards import prepare
from labkernels.llm.train import TrainConfig, Trainer

TINY = {"vocab_size": 320, "embed_dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 66, "max_seq_len": 64, "qk_norm": True}
STEPS = 4
MODES = {
    "ddp": {},
    "ddp, accumulated": {"accumulate": 2},
    "ddp, muon": {"optimizer": "muon"},
    "fsdp": {"parallel": "fsdp"},
    "fsdp, accumulated": {"parallel": "fsdp", "accumulate": 2, "optimizer": "adamw-torch"},
    "tensor": {"tensor_parallel": 2},
    "fsdp and tensor": {"parallel": "fsdp", "tensor_parallel": 2},
    "ddp and tensor": {"tensor_parallel": 2},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(250):
        (folder / f"{number}.txt").write_text("".join(f"{i} times {number} is {i * number}, and so it goes on. " for i in range(2 + number % 5)))
    return prepare(corpus(folder), 300, folder=tmp_path_factory.mktemp("tokens") / "tokens", progress=False)


def config(**changes):
    return TrainConfig(**{
        "preset": "10m", "model": TINY, "seq_len": 32, "batch_size": 8, "steps": STEPS, "precision": "float32", "lr": 5e-3, "warmup": 2, "device": "cpu",
        "evaluate_batches": 2, "sample_tokens": 3, "compile": "none", "boundaries": True, "clip": 0.5, **changes,
    })  # fmt: skip


def curve(rows):
    return [row[name] for row in rows for name in ("loss", "grad_norm", "validation_loss", "bits_per_byte") if name in row]


def whole_batch(mode):
    """What one process takes at a time, that it is the same data."""
    options = {name: value for name, value in mode.items() if name not in ("parallel", "tensor_parallel")}
    return options


def train_rank(data, options):
    trainer = DistributedTrainer(config(**options), data)
    rows = trainer.train()
    return curve(rows), [row["event"] for row in rows if str(row.get("event", "")).startswith("sample")], trainer.tokens


@pytest.fixture(scope="module")
def alone(data):
    """Curves of one process, by its options."""
    found = {}

    def get(options):
        key = tuple(sorted(options.items()))
        if key not in found:
            trainer = Trainer(config(**options), data)
            found[key] = curve(trainer.train()), [row["event"] for row in trainer.rows if "event" in row], trainer.tokens
        return found[key]

    return get


@pytest.mark.parametrize("name", MODES)
def test_the_curve_is_that_of_one_process(data, alone, name):
    mode = MODES[name]
    count = 4 if " and " in name else 2
    data_ranks = count // mode.get("tensor_parallel", 1)
    found = ranks.run(train_rank, count, data, mode | {"batch_size": 8 // data_ranks})
    want, text, tokens = alone(whole_batch(mode))
    assert len(want) == 2 * STEPS + 2 and want[2 * STEPS - 2] < want[0]
    for got, sampled, counted in found:
        assert got == pytest.approx(want, rel=2e-4), name
        assert sampled == text and counted == tokens
    assert all(one[0] == found[0][0] for one in found), "all ranks see the same numbers"
