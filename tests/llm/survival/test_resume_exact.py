"""A training that was stopped and continued by a fresh trainer has the bits of one that was not: weights, masters and moments.

On a GPU with torch.compile, our kernels and stochastic rounding, in deterministic mode; on the CPU the same without the compiler.
"""

import pytest
import torch

from labkernels.llm.data.loader import Loader
from labkernels.llm.training.train import TrainConfig, Trainer

SHAPE = {"vocab_size": 320, "embed_dim": 128, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 64, "ffn_dim": 256, "max_seq_len": 128}


@pytest.fixture(scope="module")
def data(sums):
    return sums(4)


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()


def trained(data, steps, folder=None, **options):
    config = TrainConfig(**{
        "preset": "10m", "model": SHAPE, "seq_len": 64, "batch_size": 4, "steps": steps, "schedule": "constant", "warmup": 2, "lr": 3e-3,
        "precision": "bf16", "master": "stochastic", "moments": "bf16", "deterministic": True, "evaluate_batches": 1, "sample_tokens": 1,
        "folder": None if folder is None else str(folder), **options,
    })  # fmt: skip
    trainer = Trainer(config, data)
    began = trainer.step
    trainer.train()
    state = trainer.state()
    return began, flat({"model": state["model"], "optimizers": state["optimizers"]})


def flat(value, place=""):
    if isinstance(value, dict):
        return {k: v for name, one in value.items() for k, v in flat(one, f"{place}/{name}").items()}
    if isinstance(value, (list, tuple)):
        return flat(dict(enumerate(value)), place)
    return {place: value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value}


def different(a, b):
    assert a.keys() == b.keys() and any("state" in name for name in a)
    return [name for name in a if not (torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name])]


def straight_and_continued(data, folder, **options):
    _, straight = trained(data, 10, **options)
    trained(data, 5, folder, **options)
    began, continued = trained(data, 10, folder, **options)
    assert began == 5
    return straight, continued


@pytest.mark.parametrize("options", [{}, {"master": "float32", "moments": "float32"}], ids=["stochastic", "master"])
def test_on_the_cpu_it_continues_bit_by_bit(data, tmp_path, options):
    straight, continued = straight_and_continued(data, tmp_path, device="cpu", compile="none", kernels="torch", **options)
    assert different(straight, continued) == []


def test_a_place_in_the_data_that_is_forgotten_is_seen(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Loader, "load_state_dict", lambda self, state: None)
    straight, continued = straight_and_continued(data, tmp_path, device="cpu", compile="none", kernels="torch")
    assert len(different(straight, continued)) > 10


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [{"kernels": "labkernels"}, {"kernels": "auto", "master": "float32", "moments": "float32"}], ids=["stochastic", "master"]
)
def test_on_a_gpu_compiled_and_with_our_kernels_it_continues_bit_by_bit(data, tmp_path, options):
    straight, continued = straight_and_continued(data, tmp_path, device="cuda", compile="blocks", **options)
    assert different(straight, continued) == []
