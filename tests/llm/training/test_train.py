"""The trainer: it learns, a step is the mean over its tokens however it is cut, it continues bit by bit, it stops when told, it skips what is not finite."""

import json
import math
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from labkernels.cli import app
from labkernels.errors import ArgumentError, LabKernelsError
from labkernels.llm.data.corpora import corpus
from labkernels.llm.training.evaluate import evaluate, sample
from labkernels.llm.model import Transformer
from labkernels.llm.training.monitor import read_log
from labkernels.llm.data.shards import prepare
from labkernels.llm.data.tokenizer import Tokenizer
from labkernels.llm.training.train import TrainConfig, Trainer

TINY = {"vocab_size": 320, "embed_dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_dim": 64, "max_seq_len": 64}


@pytest.fixture(scope="module")
def data(sums):
    return sums()


def config(**changes):
    return TrainConfig(**{
        "preset": "10m", "model": TINY, "seq_len": 32, "batch_size": 4, "steps": 6, "precision": "float32", "lr": 5e-3, "warmup": 2, "device": "cpu",
        "evaluate_batches": 2, "sample_tokens": 4, "compile": "none", **changes,
    })  # fmt: skip


def losses(trainer):
    return [row["loss"] for row in trainer.train() if "loss" in row]


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"precision": "bf16", "master": "stochastic", "moments": "bf16"}, {"optimizer": "muon"},
                                     {"optimizer": "adamw-torch"}, {"schedule": "wsd", "boundaries": True}])  # fmt: skip
def test_the_loss_falls(data, options):
    trainer = Trainer(config(steps=25, **options), data)
    found = losses(trainer)
    assert len(found) == 25 and found[-1] < found[0] - 1.0 and trainer.guard.skipped == 0
    evaluation = [row for row in trainer.rows if "validation_loss" in row][-1]
    assert evaluation["validation_loss"] < found[0] - 1.0 and 0 < evaluation["bits_per_byte"] < 8
    assert trainer.rows[-1]["event"].startswith("sample: def")


@pytest.mark.parametrize("boundaries", [False, True])
def test_accumulated_batches_are_one_large_batch(data, boundaries):
    """Each token counts the same, also where documents' ends leave some batches fewer targets."""
    whole, halves = (Trainer(config(batch_size=b, accumulate=a, boundaries=boundaries, clip=0.1), data) for b, a in ((4, 1), (1, 4)))
    for trainer in (whole, halves):
        batches = [next(trainer.loader) for _ in range(trainer.config.accumulate)]
        trainer.loss = trainer.backward(batches)
        trainer.counts = [batch.tokens_counted for batch in batches]
    assert whole.loss.item() == pytest.approx(halves.loss.item(), rel=1e-6)
    for a, b in zip(whole.model.parameters(), halves.model.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    assert (len(set(halves.counts)) > 1) == boundaries


@pytest.mark.parametrize("options", [{}, {"precision": "bf16", "optimizer": "muon", "accumulate": 2, "batch_size": 2}])
def test_it_continues_bit_by_bit(data, tmp_path, options):
    straight = Trainer(config(schedule="constant", warmup=1, **options), data)
    losses(straight)
    Trainer(config(schedule="constant", warmup=1, folder=str(tmp_path), steps=3, **options), data).train()
    second = Trainer(config(schedule="constant", warmup=1, folder=str(tmp_path), **options), data)
    assert second.step == 3
    later = losses(second)
    assert len(later) == 3
    for (name, a), b in zip(straight.model.state_dict().items(), second.model.state_dict().values()):
        assert torch.equal(a, b), name
    log = read_log(tmp_path / "train.jsonl")
    assert log["loss"].dropna().tolist() == [row["loss"] for row in straight.rows if "loss" in row]


def test_sigterm_saves_and_leaves(data, tmp_path, capsys):
    trainer = Trainer(config(folder=str(tmp_path), steps=500), data)
    step = trainer.train_step

    def told_at_the_second():
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step()

    trainer.train_step = told_at_the_second
    trainer.train()
    assert trainer.step == 2 and "told to stop (SIGTERM): saved and left after step 2" in capsys.readouterr().out
    assert Trainer(config(folder=str(tmp_path)), data).step == 2


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {}, {"optimizer": "muon"}, {"optimizer": "adamw-torch"}])
def test_a_step_that_is_not_finite_is_skipped_and_told(data, options, capsys):
    trainer = Trainer(config(steps=3, **options), data)
    backward, seen = trainer.backward, []

    def broken(batches):
        loss = backward(batches)
        if trainer.step == 1:
            trainer.model.norm.weight.grad[0] = math.nan
        seen.append([p.detach().clone() for p in trainer.model.parameters()])
        return loss

    trainer.backward = broken
    trainer.train()
    assert trainer.guard.skipped == 1 and "step 1 skipped" in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(seen[1], seen[2])), "a skipped step changes no weight"
    assert not all(torch.equal(a, b) for a, b in zip(seen[0], seen[1]))
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_micro_batch_without_targets_counts_for_nothing(data):
    """Its mean loss would be NaN, and NaN times 0 is, too."""
    trainer, alone = (Trainer(config(), data) for _ in range(2))
    first, second = next(trainer.loader), next(trainer.loader)
    nothing = replace(second, targets=torch.full_like(second.targets, -100), tokens_counted=0)
    found, want = trainer.backward([first, nothing]), alone.backward([first])
    assert found.item() == pytest.approx(want.item(), rel=1e-6)
    for a, b in zip(trainer.model.parameters(), alone.model.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    assert trainer.backward([nothing]).item() == 0.0
    assert evaluate(trainer.model, [first, nothing]).loss == pytest.approx(evaluate(trainer.model, [first]).loss)


def test_a_checkpoint_of_other_settings_is_told_or_refused(data, tmp_path, capsys):
    Trainer(config(folder=str(tmp_path), steps=2), data).train()
    capsys.readouterr()
    Trainer(config(folder=str(tmp_path), lr=1e-4, steps=9, kernels="torch", betas=(0.9, 0.95)), data)
    assert capsys.readouterr().out.strip().endswith("after step 2; it was saved with lr 0.005, now 0.0001")
    Trainer(config(folder=str(tmp_path), steps=9, compile="blocks"), data)
    assert capsys.readouterr().out.strip().endswith("after step 2")
    with pytest.raises(ArgumentError, match="the checkpoint has optimizer 'adamw', now 'muon'"):
        Trainer(config(folder=str(tmp_path), optimizer="muon"), data)
    with pytest.raises(ArgumentError, match="the checkpoint has model .*'num_layers': 2"):
        Trainer(config(folder=str(tmp_path), model={**TINY, "num_layers": 1}), data)


def test_out_of_memory_is_told_with_what_would_need_less(data):
    trainer = Trainer(config(precision="bf16"), data)

    def no_room(batches):
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB")

    trainer.backward = no_room
    with pytest.raises(LabKernelsError, match="out of memory in a step of 4 x 32 tokens(.|\n)*what to change"):
        trainer.train()


def test_minutes_end_it_and_the_schedule_with_it(data):
    trainer = Trainer(config(steps=None, minutes=0.02, schedule="wsd", min_lr=0.0, evaluate_every=10_000), data)
    rows = [row for row in trainer.train() if "loss" in row]
    assert 1.2 <= trainer.seconds < 6 and len(rows) > 5
    assert rows[-1]["lr"] < 0.3 * trainer.config.lr


def test_checkpointing_changes_nothing(data):
    found = {mode: losses(Trainer(config(checkpointing=mode, steps=2), data)) for mode in ("none", "selective", "full")}
    for mode in ("selective", "full"):
        assert found[mode] == pytest.approx(found["none"], rel=1e-5)


def test_evaluation_counts_every_token_the_same_and_bits_every_byte(data):
    trainer = Trainer(config(), data)
    sizes = torch.as_tensor(data.tokenizer.token_bytes())
    batches = list(trainer.build_loader("validation").one_epoch(3))
    found = evaluate(trainer.model, batches, sizes)
    with torch.no_grad():
        logits = torch.cat([trainer.model(batch.inputs).flatten(0, 1) for batch in batches])
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    assert found.tokens == len(targets) and found.loss == pytest.approx(nats / len(targets), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / sizes[targets].sum().item(), rel=1e-5)
    with pytest.raises(ArgumentError, match="there was no batch"):
        evaluate(trainer.model, [])


def test_samples_are_seeded_and_greedy_ones_are_the_likeliest(data):
    model = Trainer(config(), data).model
    assert sample(model, [1, 2], 8, seed=3) == sample(model, [1, 2], 8, seed=3) != sample(model, [1, 2], 8, seed=4)
    greedy, tokens = sample(model, [1, 2], 5, temperature=0), [1, 2]
    for _ in range(5):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert greedy == tokens[2:]
    assert len(sample(model, [1, 2], 70, temperature=0)) == 70  # longer than max_seq_len


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"precision": "fp16"}, "precision is 'fp16'; it must be one of 'float32', 'bf16'"),
        ({"batch_size": 0}, "batch_size is 0; it must be a number of at least 1"),
        ({"steps": None}, "neither steps nor minutes"),
        ({"fp8": "tensor"}, "fp8 goes with precision 'bf16'"),
        ({"min_lr": 2}, "min_lr is 2"),
        ({"seed": -1}, "seed is -1; it must be a number of at least 0"),
        ({"seed": 1 << 63}, r"seed is 9223372036854775808; it must be less than 2\*\*63"),
        ({"minutes": -1}, "minutes is -1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number"),
        ({"steps": 2.0}, "steps is 2.0; it must be a whole number"),
        ({"on_full_disk": "ignore"}, "on_full_disk is 'ignore'; it must be one of 'warn', 'raise'"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\)"),
    ],
)
def test_wrong_options_are_named(changes, words):
    with pytest.raises(ArgumentError, match=f"TrainConfig: {words}"):
        config(**changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model": {"layers": 2}}, "there is no field 'layers'"),
        ({"model": {"num_layers": "abc"}}, "num_layers is 'abc'; it must be an int of at least 1"),
        ({"preset": "11m"}, "name is '11m'"),
        ({"device": "tpu"}, "device is 'tpu'; it must be auto, cpu, cuda or cuda:NUMBER"),
    ],
)
def test_a_model_or_a_machine_that_cannot_be_is_told_before_text_becomes_tokens(changes, words):
    with pytest.raises(ArgumentError, match=words):
        config(**changes)


def test_a_gpu_that_is_not_there_is_told(data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match="device is 'cuda', and torch sees no NVIDIA GPUs here"):
        Trainer(config(device="cuda"), data)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ArgumentError, match="device is 'cuda:2', and torch sees 2 NVIDIA GPUs here"):
        Trainer(config(device="cuda:2"), data)


def test_what_would_fail_at_the_end_is_refused_at_the_beginning(data, tmp_path):
    with pytest.raises(ArgumentError, match="Trainer: seq_len is 65; the model takes at most 64"):
        Trainer(config(seq_len=65, boundaries=True), data)
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number}.txt").write_text(f"number {number * number} is the number {number} times itself, and so it goes on.")
    short = prepare(corpus(tmp_path / "text"), 300, folder=tmp_path / "tokens")
    with pytest.raises(ArgumentError, match="Trainer: validation has [0-9]+ tokens, in documents: [0-9]+, not the 257"):
        Trainer(config(model={**TINY, "max_seq_len": 256}, seq_len=256, batch_size=1), short)


def test_the_last_checkpoint_is_written_before_the_last_look(data, tmp_path, monkeypatch):
    trainer = Trainer(config(folder=str(tmp_path), on_full_disk="raise"), data)
    assert trainer.store.on_error == "raise"
    monkeypatch.setattr(trainer, "evaluate", lambda: (_ for _ in ()).throw(RuntimeError("evaluation fails")))
    with pytest.raises(RuntimeError, match="evaluation fails"):
        trainer.train()
    assert Trainer(config(folder=str(tmp_path)), data).step == 6


def test_the_command_trains_and_continues(data, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(8):
        (text / f"{number}.txt").write_text(f"number {number} " * 300)
    command = ["train", "--corpus", str(text), "--vocab-size", "300", "--steps", "2", "--batch-size", "2", "--seq-len", "16", "--precision", "float32",
               "--folder", str(tmp_path / "run"), "--evaluate-batches", "1", "--sample-tokens", "2", "--device", "cpu",
               *[word for name in ("embed_dim=16", "num_layers=1", "num_heads=2", "num_kv_heads=1", "ffn_dim=32") for word in ("--model", name)]]  # fmt: skip
    first = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    assert first.exit_code == 0 and "validation loss" in first.stderr
    told = json.loads(first.stdout)
    assert (told["model"], told["step"], told["tokens"]) == (str(tmp_path / "run" / "model"), 2, 2 * 2 * 16) and told["validation_loss"] > 0
    command[command.index("--steps") + 1] = "3"
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert again.exit_code == 0 and "after step 2" in again.output
    assert f"next: labkernels generate {tmp_path / 'run' / 'model'}" in again.output.replace("\n", "")
    loaded, tokenizer = Transformer.from_pretrained(tmp_path / "run" / "model"), Tokenizer.load(tmp_path / "run" / "model")
    assert loaded.config.num_layers == 1 and tokenizer.vocab_size <= loaded.config.vocab_size and tokenizer.encode("number 1")
    rows = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [0, 1, 2]
    assert "more of them continue it" not in again.output
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0 and "after step 3" in done.output and "its steps are done, or its minutes over: more of them continue it" in done.output
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000003-step-3")
    newest = tmp_path / "run" / "checkpoints" / "000002-step-3" / "model.safetensors"
    os.truncate(newest, 100)
    broken = CliRunner().invoke(app, command, catch_exceptions=False)
    assert broken.exit_code == 0 and "because newer checkpoints are broken" in broken.output and "after step 2" in broken.output
    assert "UserWarning" not in broken.output and ".py" not in broken.output
    wrong = CliRunner().invoke(app, [*command, "--optimizer", "sgd"])
    assert wrong.exit_code == 1 and "optimizer is 'sgd'" in wrong.output


def test_a_model_that_has_no_place_in_hugging_faces_layout_is_told(data, tmp_path, capsys):
    Trainer(config(folder=str(tmp_path), steps=1, model={**TINY, "activation": "gelu"}), data).train()
    assert "no model is written beside the checkpoints: Hugging Face's layout has no gelu" in capsys.readouterr().out and not (tmp_path / "model").exists()


def test_betas_are_two_numbers_on_the_command_line(monkeypatch):
    from labkernels.cli import train

    seen = {}
    monkeypatch.setattr(train, "train_with", seen.update)
    assert CliRunner().invoke(app, ["train", "--betas", "0.8", "0.9"]).exit_code == 0 and seen["betas"] == (0.8, 0.9)


def test_every_option_of_the_command_has_help():
    from labkernels.cli.train import train
    from labkernels.llm.training import train_config

    parameters = train.__signature__.parameters
    fields = set(train_config.TrainConfig.__dataclass_fields__)
    assert set(parameters) == fields | {"as_json"}
    for name, parameter in parameters.items():
        told = parameter.annotation.__metadata__[0].help
        assert told and "None" not in told and "`" not in told and "labkernels.llm" not in told, name  # in the reader's words
        if name == "as_json":
            continue
        field = train_config.TrainConfig.__dataclass_fields__[name]
        assert name in ("model", "kernels") or parameter.default == field.default, name


@pytest.mark.parametrize(
    "given, words",
    [
        (["--batch-size", "0"], "--batch-size is 0; it must be a number of at least 1"),
        (["--preset", "11m"], "--preset is '11m'; it must be one of '10m'"),
        ([], "--minutes or --steps is needed"),
        (["--folder", __file__], f"{__file__} is a file, and a folder is needed there"),
    ],
)
def test_what_the_command_refuses_is_named_as_its_options_are(given, words):
    refused = CliRunner().invoke(app, ["train", *given, *(["--steps", "1"] if given else [])])
    assert refused.exit_code == 1 and refused.stderr.startswith(words) and "TrainConfig" not in refused.stderr


@pytest.mark.gpu
def test_on_a_gpu_it_learns_with_our_kernels_compiled_and_in_fp8(data):
    for options in ({"kernels": "labkernels"}, {"compile": "blocks", "kernels": "auto"}, {"fp8": "tensor", "compile": "blocks", "kernels": "auto"},
                    {"fp8": "delayed", "master": "stochastic", "moments": "bf16"}, {"checkpointing": "selective"}, {"optimizer": "muon", "kernels": "auto"}):  # fmt: skip
        found = losses(Trainer(config(device="cuda", precision="bf16", steps=25, model={**TINY, "embed_dim": 128, "ffn_dim": 256}, **options), data))
        assert found[-1] < found[0] - 1.0, options


@pytest.mark.gpu
def test_on_a_gpu_deterministic_runs_continue_bit_by_bit(data, tmp_path):
    options = {"device": "cuda", "precision": "bf16", "deterministic": True, "schedule": "constant", "warmup": 1, "kernels": "labkernels"}
    try:
        straight = Trainer(config(**options), data)
        straight.train()
        Trainer(config(folder=str(tmp_path), **options | {"steps": 3}), data).train()
        second = Trainer(config(folder=str(tmp_path), **options), data)
        second.train()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(straight.model.state_dict().values(), second.model.state_dict().values()))
