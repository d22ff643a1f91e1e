"""Training on several processes: the curve of one, in each mode; checkpoints that go on on another number; a rank that is killed."""

import os
import signal

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.llm.parallel import ranks, tensor_parallel
from labkernels.llm.survival.checkpoint import CheckpointStore
from labkernels.llm.config import ModelConfig
from labkernels.llm.parallel.distributed import DistributedTrainer, RankLost
from labkernels.llm.model import Transformer
from labkernels.llm.parallel.tensor_parallel import Cut
from labkernels.llm.training.train import TrainConfig, Trainer

TINY = {"vocab_size": 320, "embed_dim": 32, "head_dim": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 66, "max_seq_len": 64}
TINY["qk_norm"] = True
STEPS = 4
MODES = {
    "ddp": {},
    "ddp, accumulated": {"accumulate": 2},
    "ddp, muon": {"optimizer": "muon"},
    "fsdp": {"parallel": "fsdp"},
    "fsdp, muon": {"parallel": "fsdp", "optimizer": "muon"},
    "tensor, muon": {"tensor_parallel": 2, "optimizer": "muon"},
    "fsdp, accumulated": {"parallel": "fsdp", "accumulate": 2, "optimizer": "adamw-torch"},
    "tensor": {"tensor_parallel": 2},
    "fsdp and tensor": {"parallel": "fsdp", "tensor_parallel": 2},
    "ddp and tensor": {"tensor_parallel": 2},
}


@pytest.fixture(scope="module")
def data(sums):
    return sums()


def config(**changes):
    return TrainConfig(**{
        "preset": "10m", "model": TINY, "seq_len": 32, "batch_size": 8, "steps": STEPS, "precision": "float32", "lr": 5e-3, "warmup": 2, "device": "cpu",
        "evaluate_batches": 2, "sample_tokens": 3, "compile": "none", "boundaries": True, "clip": 0.5, **changes,
    })  # fmt: skip


def curve(rows):
    return [row[name] for row in rows for name in ("loss", "grad_norm", "validation_loss", "bits_per_byte") if name in row]


def on_one(mode):
    """The options of a mode that one process takes."""
    return {name: value for name, value in mode.items() if name not in ("parallel", "tensor_parallel")}


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
    want, text, tokens = alone(on_one(mode))
    assert len(want) == 2 * STEPS + 2 and want[2 * STEPS - 2] < want[0]
    for got, sampled, counted in found:
        assert got == pytest.approx(want, rel=2e-4), name
        assert sampled == text and counted == tokens
    assert all(one[0] == found[0][0] for one in found), "all ranks see the same numbers"


def train_in_fp8(data, options):
    shape = {**TINY, "ffn_dim": 64, "qk_norm": False}
    trainer = DistributedTrainer(config(model=shape, precision="bf16", fp8="delayed", **options), data)
    rows = trainer.train()
    return [row["loss"] for row in rows if "loss" in row], trainer.fp8_scales.rows.clone()


@pytest.mark.parametrize("mode", [{}, {"parallel": "fsdp"}, {"tensor_parallel": 2}], ids=["ddp", "fsdp", "tensor"])
def test_ranks_agree_on_the_scales_of_fp8(data, mode):
    batch_size = 8 if "tensor_parallel" in mode else 4
    shape = {**TINY, "ffn_dim": 64, "qk_norm": False}
    alone = Trainer(config(model=shape, precision="bf16", fp8="delayed"), data)
    want = [row["loss"] for row in alone.train() if "loss" in row]
    found = ranks.run(train_in_fp8, 2, data, {**mode, "batch_size": batch_size})
    assert all(losses == pytest.approx(want, rel=0.02) for losses, _ in found) and want[-1] < want[0]
    assert torch.equal(found[0][1], found[1][1]) and (found[0][1][:, 0] > 1).any()


SPREAD = {
    "one": (1, {}),
    "one muon": (1, {"optimizer": "muon"}),
    "ddp": (2, {}),
    "fsdp": (2, {"parallel": "fsdp"}),
    "fsdp muon": (2, {"parallel": "fsdp", "optimizer": "muon"}),
    "tensor": (2, {"tensor_parallel": 2}),
    "both": (4, {"parallel": "fsdp", "tensor_parallel": 2}),
}


def run_spread(name, data, folder, **options):
    """(curve, tokens) of a training that ends after options["steps"]."""
    count, mode = SPREAD[name]
    options = {"folder": str(folder), "batch_size": 8 * mode.get("tensor_parallel", 1) // count, "schedule": "constant", "warmup": 1, **mode, **options}
    if count == 1:
        trainer = Trainer(config(**options), data)
        return curve(trainer.train()), trainer.tokens
    found, _, tokens = ranks.run(train_rank, count, data, options)[0]
    return found, tokens


BF16 = {"precision": "bf16", "kernels": "torch"}  # with its float32 master
CONTINUED = [("ddp", "one", {}), ("one", "ddp", {}), ("fsdp", "one", {}), ("one", "fsdp", {}), ("tensor", "one", {}), ("one", "tensor", {}),
             ("both", "ddp", {}), ("tensor", "fsdp", {}), ("fsdp muon", "one muon", {}), ("fsdp", "one", BF16), ("one", "tensor", BF16)]  # fmt: skip


@pytest.mark.parametrize("first, second, options", CONTINUED, ids=lambda value: value if isinstance(value, str) else value.get("precision", "float32"))
def test_a_checkpoint_goes_on_on_another_number_of_ranks(data, tmp_path, first, second, options):
    before, _ = run_spread(first, data, tmp_path / "parts", steps=2, **options)
    whole, seen = run_spread("one muon" if "muon" in first else "one", data, tmp_path / "whole", steps=4, **options)
    after, tokens = run_spread(second, data, tmp_path / "parts", steps=4, **options)
    assert tokens == seen == 4 * 8 * 32
    close = {"rel": 0.03 if options else 3e-4}
    assert before[:4] == pytest.approx(whole[:4], **close) and after == pytest.approx(whole[4:], **close)
    saved = [CheckpointStore(tmp_path / name / "checkpoints").load().state for name in ("parts", "whole")]
    assert saved[0]["data"] == saved[1]["data"] and saved[0]["counts"]["step"] == 4
    assert saved[0]["model"].keys() == saved[1]["model"].keys()
    for name, weight in saved[1]["model"].items():
        torch.testing.assert_close(saved[0]["model"][name], weight, rtol=0.1 if options else 1e-3, atol=0.01 if options else 1e-4)
    for number, values in saved[1]["optimizers"][0]["state"].items():
        for name, value in values.items():
            got = saved[0]["optimizers"][0]["state"][number][name]
            assert got.shape == value.shape and got.dtype == value.dtype, (number, name)
            if name in ("exp_avg", "master"):
                torch.testing.assert_close(got, value, rtol=0.3 if options else 1e-2, atol=0.02 if options else 1e-4)


def step_of_resumed(data, options):
    return DistributedTrainer(config(**options), data).step


def test_a_truncated_checkpoint_is_passed_over_by_all_ranks(data, tmp_path):
    run_spread("fsdp", data, tmp_path, steps=4, save_every=2)
    newest = CheckpointStore(tmp_path / "checkpoints").folders()[-1]
    with open(newest / "state.pt", "r+b") as file:
        file.truncate(1000)
    options = {"folder": str(tmp_path), "batch_size": 4, "parallel": "fsdp"}
    assert newest.name.endswith("step-4") and ranks.run(step_of_resumed, 2, data, options) == [2, 2]


def test_a_weight_cut_as_if_nothing_were_stacked_in_it_is_found(data, alone, monkeypatch):
    wrong = {"attention.qkv_proj.weight": Cut(0, (64,))}
    right = tensor_parallel.cut_of
    monkeypatch.setattr(tensor_parallel, "cut_of", lambda name, c: next((cut for end, cut in wrong.items() if name.endswith(end)), right(name, c)))
    got, _, _ = ranks.run(train_rank, 2, data, {"tensor_parallel": 2, "steps": 1})[0]
    want, _, _ = alone({"steps": 1})
    assert got[:2] != pytest.approx(want[:2], rel=2e-4)


def test_parts_of_a_weight_make_it_whole():
    model = Transformer(ModelConfig.preset("10m", **TINY))
    cuts = {name: tensor_parallel.cut_of(name, model.config) for name, _ in model.named_parameters()}
    assert sum(how is not None for how in cuts.values()) == 4 * 2
    for name, p in model.named_parameters():
        if cuts[name] is not None:
            parts = [tensor_parallel.cut(p, cuts[name], rank, 2) for rank in range(2)]
            assert torch.equal(tensor_parallel.join(parts, cuts[name]), p) and parts[0].numel() * 2 == p.numel()
    q, k = model.blocks[0].attention.qkv_proj.weight[:32], model.blocks[0].attention.qkv_proj.weight[32:48]
    second = tensor_parallel.cut(model.blocks[0].attention.qkv_proj.weight, cuts["blocks.0.attention.qkv_proj.weight"], 1, 2)
    assert torch.equal(second[:16], q[16:]) and torch.equal(second[16:24], k[8:])


def classes_of_layers(data):
    trainer = DistributedTrainer(config(tensor_parallel=2), data)
    return len({type(block.attention) for block in trainer.model.blocks} | {type(block.ffn) for block in trainer.model.blocks})


def test_shared_layers_have_one_class_so_that_one_compiled_graph_serves_all(data):
    assert ranks.run(classes_of_layers, 2, data) == [2, 2]


def broken_rank(data, folder):
    trainer = DistributedTrainer(config(folder=folder, batch_size=4, steps=1000, save_every=2, parallel="fsdp", timeout_s=20), data)
    step = trainer.train_step

    def dies_after_three():
        if trainer.step == 3:
            if trainer.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return step()

    trainer.train_step = dies_after_three
    try:
        trainer.train()
    except RankLost as error:
        return str(error)


def test_a_killed_rank_ends_the_others_with_a_message_and_the_checkpoint_goes_on(data, tmp_path):
    with pytest.raises(ranks.RankError, match="rank 1 ended without a result"):
        ranks.run(broken_rank, 2, data, str(tmp_path), timeout_s=30)
    trainer = Trainer(config(folder=str(tmp_path)), data)
    assert trainer.step == 2


def told_message(data, folder):
    trainer = DistributedTrainer(config(folder=folder, batch_size=4), data)
    trainer.watch.processes[1] = (os.uname().nodename, 2**22 + 1)  # a process that there is not

    def lost():
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")

    trainer.train_step = lost
    with pytest.raises(RankLost, match="stops after step 0, because rank 1 has ended; the same command goes on from the newest whole checkpoint in"):
        trainer.train()
    trainer.train_step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()


def test_a_lost_rank_is_named_and_other_errors_are_what_they_are(data, tmp_path):
    ranks.run(told_message, 2, data, str(tmp_path))


def stopped_rank(data, folder):
    trainer = DistributedTrainer(config(folder=folder, batch_size=4, steps=1000), data)
    step = trainer.train_step

    def told_once():
        if trainer.step == 2 and trainer.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step()

    trainer.train_step = told_once
    trainer.train()
    return trainer.step


def test_a_signal_to_one_rank_saves_and_ends_all_after_the_same_step(data, tmp_path):
    assert ranks.run(stopped_rank, 2, data, str(tmp_path)) == [3, 3]
    assert CheckpointStore(tmp_path / "checkpoints").load().step == 3


def test_refusals(data):
    def refused(options, said):
        with pytest.raises(ArgumentError, match=said):
            DistributedTrainer(config(**options), data)

    ranks.run(refused, 2, {"tensor_parallel": 3}, "tensor_parallel is 3; it must divide the number of GPUs, 2")
    ranks.run(refused, 2, {"tensor_parallel": 2, "model": TINY | {"num_kv_heads": 1}}, "num_kv_heads, 1")
