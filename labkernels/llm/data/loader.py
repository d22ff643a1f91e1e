"""Batches of tokens, shuffled by (seed, epoch), the same whatever the number of GPUs, resumable at any step.

Each epoch puts the documents in a new order, lays them one after the other, cuts that into samples of `seq_len` tokens (and one more, for
the last target), and shuffles the samples. Sample number n of the whole training is thus a function of (data, seed, seq_len, n) alone:
- the position is one number, and resuming reads nothing of what came before
- a step of 8 samples is the same 8 on one GPU, on two with 4 each, or in two accumulated halves
- a checkpoint continues on another number of GPUs with the same data
Batches are made by a thread while the GPU works, in pinned memory, and copied on a stream of their own.

    loader = Loader(data["train"], batch_size=16, seq_len=2048, seed=0, rank=rank, world_size=world_size, device="cuda")
    for batch in loader:                                  # without end
        loss = model(batch.inputs, batch.targets)
    state = loader.state_dict()                           # the next batch is the first that `load_state_dict(state)` gives
"""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from labkernels.errors import ArgumentError, LabKernelsError
from labkernels.llm.data.token_dataset import TokenSplit

IGNORED = -100  # a target that does not count
_WAIT_S = 300.0  # for one batch; disks that sleep longer are broken


class DataError(LabKernelsError):
    """The data does not come."""


@dataclass
class Batch:
    """One step's (or micro-step's) share of this rank. With `boundaries` documents do not see each other."""

    inputs: torch.Tensor  # (batch, seq) int64
    targets: torch.Tensor  # (batch, seq) int64: the token after each input; with `boundaries` IGNORED where that begins another document
    positions: torch.Tensor | None = None  # (batch, seq) int64: 0 at each document's first token in its row
    cu_seqlens: torch.Tensor | None = None  # (pieces + 1,) int32: where documents begin in batch * seq tokens, rows one after the other
    max_seqlen: int | None = None  # tokens of the longest piece
    tokens_counted: int = 0  # targets that are not IGNORED

    def targets_to_weigh(self) -> torch.Tensor:
        """`targets`; where none counts, others, whose loss is finite: the mean over no token is NaN, and NaN times a weight of 0 is, too."""
        return self.targets if self.tokens_counted else self.inputs

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._each(torch.Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        for _, value in self._tensors():
            value.record_stream(stream)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(self, **{name: change(value) for name, value in self._tensors()})

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        names = ("inputs", "targets", "positions", "cu_seqlens")
        return [(name, value) for name in names if (value := getattr(self, name)) is not None]


class Loader:
    """An endless iterator of Batch. `rank` and `world_size` are of data parallelism: ranks that share a model's pieces have the same."""

    def __init__(
        self,
        split: TokenSplit,
        batch_size: int,
        seq_len: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        boundaries: bool = False,
        device: torch.device | str = "cpu",
        prefetch: int = 2,
    ):
        leasts = {"batch_size": (batch_size, 1), "seq_len": (seq_len, 1), "world_size": (world_size, 1), "prefetch": (prefetch, 0)}
        for name, (value, least) in leasts.items():
            if value < least:
                raise ArgumentError(f"Loader: {name} must be at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ArgumentError(f"Loader: rank must be 0 to {world_size - 1}, got {rank}")
        self.split, self.batch_size, self.seq_len, self.seed = split, batch_size, seq_len, seed
        self.rank, self.world_size, self.shuffle, self.boundaries = rank, world_size, shuffle, boundaries
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:  # the thread that copies has another current device
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.samples_per_epoch = (split.tokens - 1) // seq_len
        if self.samples_per_epoch < 1:
            raise ArgumentError(
                f"Loader: the split has {split.tokens} tokens, not the {seq_len + 1} of one sample; take a smaller seq_len or more text"
            )
        self.position = 0  # samples of all ranks that were handed out
        self._prefetch = prefetch
        self._pending: deque[tuple[int, Future]] = deque()
        self._worker: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None
        self._epoch_order = functools.lru_cache(maxsize=2)(self._make_epoch_order)  # a batch may reach into the next epoch

    @property
    def epoch(self) -> float:
        """How often the data has been read, with its fraction."""
        return self.position / self.samples_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The batch at `position`, which moves on by that of all ranks."""
        step = self.batch_size * self.world_size
        if self._prefetch == 0:
            batch, ready = self._make(self.position)
        else:
            if self._pending and self._pending[0][0] != self.position:
                self._pending.clear()  # the position was set
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="loader")
            while len(self._pending) <= self._prefetch:
                position = self.position + len(self._pending) * step
                self._pending.append((position, self._worker.submit(self._make, position)))
            try:
                batch, ready = self._pending.popleft()[1].result(timeout=_WAIT_S)
            except TimeoutError as error:
                raise DataError(f"no batch came for {_WAIT_S:g} s: {self.split.folder} does not answer") from error
        if ready is not None:
            torch.cuda.current_stream(self.device).wait_event(ready)
            batch.record_stream(torch.cuda.current_stream(self.device))
        self.position += step
        return batch

    def one_epoch(self, max_batches: int | None = None) -> Iterator[Batch]:
        """Every whole batch of the first epoch from its beginning, for evaluation; `position` stays as it is."""
        step = self.batch_size * self.world_size
        count = self.one_batch_at_least()
        for number in range(min(count, max_batches or count)):
            batch, ready = self._make(number * step)
            if ready is not None:
                torch.cuda.current_stream(self.device).wait_event(ready)
                batch.record_stream(torch.cuda.current_stream(self.device))
            yield batch

    def one_batch_at_least(self) -> int:
        """How many whole batches an epoch has. Raises ArgumentError if there is none."""
        step = self.batch_size * self.world_size
        if self.samples_per_epoch < step:
            raise ArgumentError(
                f"Loader: the split has {self.samples_per_epoch} samples of {self.seq_len} tokens, fewer than the {step} of one batch"
            )
        return self.samples_per_epoch // step

    def state_dict(self) -> dict:
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: dict) -> None:
        """Continue at a position. batch_size and world_size may be others; raises ArgumentError if data, seed or seq_len are."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ArgumentError(
                    f"Loader: the checkpoint's data has {name} {state.get(name)!r}, this has {value!r}; it would not be the same samples"
                )
        self.position = int(state["position"])
        self._pending.clear()

    def close(self) -> None:
        """End the thread that prepares batches; the next batch starts one again."""
        self._pending.clear()
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
            self._worker = None

    def sample(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample `number` of the whole training: its seq_len + 1 tokens, and where in them documents begin (0 always among them)."""
        epoch, index = divmod(number, self.samples_per_epoch)
        documents, ends, order = self._epoch_order(epoch if self.shuffle else 0)
        start = int(order[index]) * self.seq_len
        stop = start + self.seq_len + 1
        starts = self.split.starts
        place = int(np.searchsorted(ends, start, side="right"))
        pieces, begins, at = [], [], start
        while at < stop:
            document = documents[place]
            left = int(ends[place]) - at
            take = min(left, stop - at)
            first = int(starts[document + 1]) - left
            pieces.append(self.split.read(first, first + take))
            begins.append(at - start)
            at, place = at + take, place + 1
        return np.concatenate(pieces), np.asarray(begins)

    def _make_epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Documents in their order, where each ends in the stream they make, and the samples in theirs."""
        if not self.shuffle:
            return np.arange(self.split.documents), self.split.starts[1:], np.arange(self.samples_per_epoch)
        of_documents, of_samples = np.random.SeedSequence([self.seed, epoch]).spawn(2)
        documents = np.random.Generator(np.random.PCG64(of_documents)).permutation(self.split.documents)
        order = np.random.Generator(np.random.PCG64(of_samples)).permutation(self.samples_per_epoch)
        return documents, np.cumsum(self.split.lengths[documents]), order

    def _make(self, position: int) -> tuple[Batch, torch.cuda.Event | None]:
        first = position + self.rank * self.batch_size
        samples = [self.sample(number) for number in range(first, first + self.batch_size)]
        tokens = torch.from_numpy(np.stack([tokens for tokens, _ in samples]).astype(np.int64))  # (batch, seq + 1)
        batch = Batch(tokens[:, :-1].clone(), tokens[:, 1:].clone(), tokens_counted=self.batch_size * self.seq_len)
        if self.boundaries:
            self._keep_boundaries(batch, [begins for _, begins in samples])
        if self.device.type != "cuda":
            return batch.to(self.device), None
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            batch = batch.pin_memory().to(self.device, non_blocking=True)
            return batch, self._stream.record_event()

    def _keep_boundaries(self, batch: Batch, begins: list[np.ndarray]) -> None:
        for row, starts in enumerate(begins):
            batch.targets[row, starts[starts > 0] - 1] = IGNORED
        starts = np.concatenate([starts[starts < self.seq_len] + row * self.seq_len for row, starts in enumerate(begins)])
        ends = np.append(starts, self.batch_size * self.seq_len)
        lengths = np.diff(ends)
        batch.positions = torch.from_numpy(np.arange(ends[-1]) - np.repeat(starts, lengths)).view(self.batch_size, self.seq_len)
        batch.cu_seqlens = torch.from_numpy(ends.astype(np.int32))
        batch.max_seqlen = int(lengths.max())
        batch.tokens_counted = int((batch.targets != IGNORED).sum())

    def _identity(self) -> dict:
        return {"data": _fingerprint(self.split), "seed": self.seed, "seq_len": self.seq_len, "shuffle": self.shuffle}


def _fingerprint(split: TokenSplit) -> str:
    """Of the split's tokens: their number, the documents' lengths, and a few thousand of the tokens themselves."""
    digest = hashlib.sha256(split.lengths.tobytes())
    step = max(1, split.tokens // 4096)
    for start in range(0, split.tokens, step):
        digest.update(split.read(start, start + 1).tobytes())
    return digest.hexdigest()[:16]
