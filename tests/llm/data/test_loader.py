"""Every token once an epoch, in an order that seed and epoch decide, whatever the number of processes; resumable at any step."""
from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkernels.errors import ArgumentError
from labkernels.llm.data import loader as loader_module
from labkernels.llm.data.loader import IGNORED, DataError, Loader


class Split:
    """What a Loader needs of a TokenSplit: documents of given lengths, whose tokens count up, so that each is known by its number."""

    folder = "memory"

    def __init__(self, lengths, first: int = 0):
        self.lengths = np.asarray(lengths, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.array = np.arange(first, first + self.starts[-1], dtype=np.uint16)
        self.tokens, self.documents = len(self.array), len(lengths)

    def read(self, start, stop):
        return self.array[start:stop]


@pytest.fixture
def split() -> Split:
    return Split(np.random.default_rng(0).integers(1, 60, 80))


def take(loader: Loader, count: int) -> torch.Tensor:
    """(count * batch, seq) inputs."""
    tokens = torch.cat([next(loader).inputs for _ in range(count)])
    loader.close()
    return tokens


@pytest.mark.parametrize("seq_len", [1, 7, 64])
def test_an_epoch_has_every_token_once_and_documents_whole(split, seq_len):
    loader = Loader(split, 1, seq_len, prefetch=0)
    samples = [loader.sample(number)[0] for number in range(loader.samples_per_epoch)]
    _, _, order = loader._epoch_order(0)
    stream = np.concatenate([samples[place][:-1] for place in np.argsort(order)])
    assert len(np.unique(stream)) == len(stream) >= split.tokens - 1 - seq_len
    breaks = np.flatnonzero(np.diff(stream.astype(int)) != 1) + 1
    assert set(stream[breaks]) <= set(split.starts[:-1])  # only where documents begin
    assert not np.array_equal(stream, np.sort(stream))


def test_targets_are_the_tokens_after_the_inputs(split):
    batch = next(Loader(split, 3, 16, shuffle=False, prefetch=0))
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64 and batch.inputs.shape == (3, 16)
    assert torch.equal(batch.inputs.flatten(), torch.arange(48)) and torch.equal(batch.targets, batch.inputs + 1)
    assert batch.positions is None and batch.cu_seqlens is None and batch.tokens_counted == 48


@pytest.mark.parametrize(("batch_size", "world_size"), [(12, 1), (6, 2), (3, 4), (2, 6), (1, 12)])
def test_a_step_is_the_same_samples_on_any_number_of_processes(split, batch_size, world_size):
    want = take(Loader(split, 12, 8, seed=3), 30).view(30, 12, 8)  # beyond the first epoch
    ranks = [take(Loader(split, batch_size, 8, seed=3, rank=rank, world_size=world_size), 30) for rank in range(world_size)]
    got = torch.cat([rank.view(30, batch_size, 8) for rank in ranks], dim=1)
    assert torch.equal(got, want)
    halves = take(Loader(split, 4, 8, seed=3), 90)  # three batches make a step
    assert torch.equal(halves, want.flatten(0, 1))


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("done", [0, 1, 5, 50])
def test_it_resumes_where_it_was_not_where_it_had_prepared_to(split, done, prefetch):
    through = Loader(split, 2, 16, seed=1, prefetch=prefetch)
    for _ in range(done):
        next(through)
    state = through.state_dict()
    want = take(through, 6)
    resumed = Loader(split, 2, 16, seed=1, prefetch=prefetch)
    next(resumed)  # the state counts, not what was read before
    resumed.load_state_dict(state)
    assert torch.equal(take(resumed, 6), want)
    elsewhere = Loader(split, 1, 16, seed=1, rank=1, world_size=2)
    elsewhere.load_state_dict(state)
    assert torch.equal(take(elsewhere, 6), want[1::2])


def test_epochs_and_seeds_differ(split):
    loader = Loader(split, 1, 16, seed=5)
    epoch = loader.samples_per_epoch
    first, second = take(loader, epoch), take(loader, epoch)
    other = take(Loader(split, 1, 16, seed=6), epoch)
    assert not torch.equal(first, second) and not torch.equal(first, other) and loader.epoch == 2.0
    assert torch.equal(first, take(Loader(split, 1, 16, seed=5), epoch))
    unshuffled = take(Loader(split, 1, 16, shuffle=False), 2 * epoch)
    assert torch.equal(unshuffled[:epoch], unshuffled[epoch:]) and torch.equal(unshuffled[0], torch.arange(16))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=3, max_size=40), st.integers(1, 4), st.integers(2, 15), st.booleans())
def test_boundaries_are_where_documents_begin(lengths, batch_size, seq_len, shuffle):
    split = Split(lengths)
    if (split.tokens - 1) // seq_len < 1:
        return
    loader = Loader(split, batch_size, seq_len, boundaries=True, shuffle=shuffle, prefetch=0)
    plain = Loader(split, batch_size, seq_len, shuffle=shuffle, prefetch=0)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for batch, other in ((next(loader), next(plain)) for _ in range(4)):
        assert torch.equal(batch.inputs, other.inputs)
        rows, targets = document_of[batch.inputs.numpy()], document_of[other.targets.numpy()]
        # a document that ends with the data begins again in the next epoch: its number alone does not tell that, its first token does
        begins = np.isin(batch.inputs.numpy(), split.starts[:-1])
        begins[:, 0] = True
        assert batch.cu_seqlens.tolist() == [*np.flatnonzero(begins.ravel()), begins.size] and batch.cu_seqlens.dtype == torch.int32
        index = np.arange(seq_len)[None].repeat(batch_size, 0)
        assert np.array_equal(batch.positions, index - np.maximum.accumulate(np.where(begins, index, 0), axis=1))
        hidden = np.isin(other.targets.numpy(), split.starts[:-1])
        assert np.array_equal(batch.targets == IGNORED, hidden) and hidden[rows != targets].all()
        assert np.array_equal(batch.targets.numpy()[~hidden], other.targets.numpy()[~hidden])
        assert batch.tokens_counted == (~hidden).sum() and batch.max_seqlen == np.diff(batch.cu_seqlens).max()


def test_evaluation_reads_the_same_each_time_and_moves_nothing(split):
    loader = Loader(split, 2, 16, shuffle=False)
    next(loader)
    first, second = ([batch.inputs for batch in loader.one_epoch()] for _ in range(2))
    assert len(first) == loader.samples_per_epoch // 2 and all(map(torch.equal, first, second)) and loader.position == 2
    assert len(list(loader.one_epoch(3))) == 3
    shares = [torch.cat([batch.inputs for batch in Loader(split, 1, 16, shuffle=False, rank=rank, world_size=2).one_epoch()]) for rank in (0, 1)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), torch.cat(first))
    loader.close()


def test_other_data_or_another_order_is_not_continued(split):
    state = Loader(split, 2, 16).state_dict()
    for other, name in [
        (Loader(Split(split.lengths, first=1), 2, 16), "data"),
        (Loader(Split(split.lengths[::-1]), 2, 16), "data"),
        (Loader(split, 2, 8), "seq_len"),
        (Loader(split, 2, 16, seed=1), "seed"),
        (Loader(split, 2, 16, shuffle=False), "shuffle"),
    ]:
        with pytest.raises(ArgumentError, match=f"the checkpoint's data has {name} "):
            other.load_state_dict(state)
    assert torch.save(state, "/dev/null") is None


def test_a_batch_that_cannot_be_read_fails_here_and_not_in_silence(split, monkeypatch):
    loader = Loader(split, 2, 16)
    next(loader)
    monkeypatch.setattr(split, "read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        for _ in range(5):
            next(loader)
    monkeypatch.undo()
    monkeypatch.setattr(loader_module, "_WAIT_S", 0.05)
    stuck = Loader(split, 2, 16)
    gate = threading.Event()
    monkeypatch.setattr(split, "read", lambda *_: gate.wait(10))
    with pytest.raises(DataError, match="no batch came"):
        next(stuck)
    gate.set()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seq_len": 0}, "seq_len must be at least 1"),
        ({"seq_len": 5000}, "not the 5001 of one sample"),
        ({"rank": 2, "world_size": 2}, "rank must be 0 to 1"),
    ],
)
def test_mistakes_are_named(split, options, says):
    with pytest.raises(ArgumentError, match=says):
        Loader(split, **({"batch_size": 2, "seq_len": 16} | options))


def test_too_little_to_evaluate_is_said(split):
    with pytest.raises(ArgumentError, match="fewer than the 5000 of one batch"):
        next(Loader(split, 5000, 16).one_epoch())
