"""How each version of `sample_tokens` is launched, and on what it can run.

Each takes what `labkernels.sampling.sample_tokens` does and returns the tokens, or tokens and log-probabilities.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, hopper_refusal, kernel, processors, vector_width
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
NAIVE_STEPS = 1 << 26  # reads of v1, at most: two passes for each token that may be kept
SHARED_BYTES = 35_168  # sizeof of the struct Shared of v3 to v5
MOST_SHARED = 227 * 1024
CLUSTER_KERNELS = {"v3_cluster": "sample_cluster", "v4_look_again": "sample_look_again", "v5_race": "sample_race"}


def v1_naive(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None, seed=0, position=0, return_logprobs=False):  # fmt: skip
    settings = _settings(logits, temperature, top_k, top_p, min_p, repetition_penalty, seed, position)
    tokens, logprobs = _results(logits, True)
    if len(tokens):
        args = (logits, *logits.stride(), logits.shape[1], *_previous(logits, previous), *settings, tokens, logprobs)
        kernel(FOLDER / "v1_naive.cu", "sample_naive", logits.dtype)(len(tokens), 256, args)
    return (tokens, logprobs) if return_logprobs else tokens


def v2_radix(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None, seed=0, position=0, return_logprobs=False):  # fmt: skip
    settings = _settings(logits, temperature, top_k, top_p, min_p, repetition_penalty, seed, position)
    tokens, logprobs = _results(logits, True)
    if len(tokens):
        vocab, before = logits.shape[1], _previous(logits, previous)
        threads = min(1024, max(64, 32 * ceil_div(vocab, 64)))
        args = (logits, logits.stride(0), vocab, *before, *settings, tokens, logprobs)
        kernel(FOLDER / "v2_radix.cu", "sample_radix", logits.dtype)(len(tokens), threads, args, 4 * ceil_div(vocab, 32) if before[1] else 0)
    return (tokens, logprobs) if return_logprobs else tokens


def v3_cluster(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None, seed=0, position=0, return_logprobs=False):  # fmt: skip
    given = (temperature, top_k, top_p, min_p, repetition_penalty, previous, seed, position, return_logprobs)
    return configured("v3_cluster", *row_held(logits.shape[1]), logits, *given)


def v4_look_again(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None, seed=0, position=0, return_logprobs=False):  # fmt: skip
    given = (temperature, top_k, top_p, min_p, repetition_penalty, previous, seed, position, return_logprobs)
    return configured("v4_look_again", *row_read(*logits.shape, processors(logits)), logits, *given)


def v5_race(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None, seed=0, position=0, return_logprobs=False):  # fmt: skip
    given = (temperature, top_k, top_p, min_p, repetition_penalty, previous, seed, position, return_logprobs)
    return configured("v5_race", *row_raced(*logits.shape, processors(logits)), logits, *given)


def configured(
    version: str, blocks: int, threads: int, logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None,
    seed=0, position=0, return_logprobs=False,
):  # fmt: skip
    """v3, v4 or v5 with clusters of so many blocks (1, 2, 4 or 8) of so many threads, at most 4096 threads in all."""
    settings = _settings(logits, temperature, top_k, top_p, min_p, repetition_penalty, seed, position)
    tokens, logprobs = _results(logits, return_logprobs)
    if len(tokens):
        rows, vocab = logits.shape
        slice_, before = slice_of(vocab, blocks), _previous(logits, previous)
        args = (logits, logits.stride(0), vocab, slice_, *before, *settings, tokens, logprobs)
        sample = kernel(FOLDER / f"{version}.cu", CLUSTER_KERNELS[version], logits.dtype, vector_width(16 // logits.element_size(), logits))
        floats = 4 * slice_ if version == "v3_cluster" else 0
        sample(rows * blocks, threads, args, SHARED_BYTES + floats + (4 * ceil_div(slice_, 32) if before[1] else 0), blocks)
    return (tokens, logprobs) if return_logprobs else tokens


def slice_of(vocab: int, blocks: int) -> int:
    """How many tokens each block has: a multiple of 8, so that vectors do not lie across two blocks."""
    return 8 * ceil_div(vocab, 8 * blocks)


def row_held(vocab: int) -> tuple[int, int]:
    """Blocks and threads for v3: as few blocks as have place for the row."""
    for blocks in (1, 2, 4):
        if vocab <= 4096 * blocks:
            return blocks, _threads(vocab, blocks)
    return (4, 1024) if _held_bytes(vocab, 4) <= MOST_SHARED else (8, 512)


def row_read(rows: int, vocab: int, at_once: int) -> tuple[int, int]:
    """Blocks and threads for v4: eight blocks a row where there are few, four where there are many, so that more rows are read at the same time."""
    for blocks in (1, 2, 4):
        if vocab <= 4096 * blocks:
            return blocks, min(512, _threads(vocab, blocks))
    return 8 if 8 * rows <= at_once else 4, 512


def row_raced(rows: int, vocab: int, at_once: int) -> tuple[int, int]:
    """Blocks and threads for v5: as v4 where there are few rows; else as many threads in twice the blocks, of which one that waits holds up fewer."""
    blocks, threads = row_read(rows, vocab, at_once)
    return (8, 256) if (blocks, threads) == (4, 512) and vocab > 4096 * 4 else (blocks, threads)


def _threads(vocab: int, blocks: int) -> int:
    """A thread for each four tokens, 64 to 1024."""
    return min(1024, max(64, 32 * ceil_div(vocab, 128 * blocks)))


def _held_bytes(vocab: int, blocks: int) -> int:
    """Shared memory of v3, with the words for previous tokens."""
    return SHARED_BYTES + 4 * slice_of(vocab, blocks) * 33 // 32


def _settings(logits, temperature, top_k, top_p, min_p, repetition_penalty, seed, position) -> tuple:
    """The kernels' `all`, and a tensor or None for each setting."""
    given = [temperature, top_k, top_p, min_p, repetition_penalty, seed, position]
    dtypes = [torch.float32, torch.int32, torch.float32, torch.float32, torch.float32, torch.int64, torch.int64]
    tensors = [value.to(logits.device, dtype).contiguous() if isinstance(value, torch.Tensor) else None for value, dtype in zip(given, dtypes)]
    t, k, p, m, r, s, n = [0 if tensor is not None else value for value, tensor in zip(given, tensors)]
    return struct.pack("<fifffxxxxQQ", t, min(k, 2**31 - 1), p, m, r, s % 2**64, n % 2**64), *tensors


def _previous(logits, previous) -> tuple:
    """The kernels' previous, previous_count, previous_stride, mask, mask_stride."""
    if previous is None or not previous.shape[1]:
        return None, 0, 0, None, 0
    if previous.dtype == torch.bool:
        mask = previous if previous.stride(1) == 1 else previous.contiguous()
        return None, 0, 0, mask, mask.stride(0)
    ids = previous.to(torch.int64)
    ids = ids if ids.stride(1) == 1 else ids.contiguous()
    return ids, ids.shape[1], ids.stride(0), None, 0


def _results(logits, with_logprobs: bool) -> tuple:
    rows, device = logits.shape[0], logits.device
    return torch.empty(rows, dtype=torch.int64, device=device), torch.empty(rows, dtype=torch.float32, device=device) if with_logprobs else None


def _few_passes(logits, temperature=1.0, top_k=0, top_p=1.0, **_) -> str | None:
    """Two passes a token would take v1 hours on a large vocabulary where nothing but top_p ends them."""
    vocab = logits.shape[1]
    ends = isinstance(top_k, int) and (0 < top_k < vocab or not isinstance(top_p, torch.Tensor) and top_p >= 1)
    passes = top_k if ends else vocab
    return None if 2 * passes * vocab <= NAIVE_STEPS else f"would read the row {2 * passes} times"


def _dense_rows(logits, **_) -> str | None:
    return None if logits.stride(1) == 1 or logits.shape[1] == 1 else "takes rows whose elements are neighbours in memory"


def _fits_a_cluster(logits, **_) -> str | None:
    rows, vocab = logits.shape
    if _held_bytes(vocab, 8) > MOST_SHARED:
        return f"takes rows that fit into the shared memory of 8 blocks, {vocab} tokens do not"
    return hopper_refusal(logits) or _dense_rows(logits)


def _on_hopper(logits, **_) -> str | None:
    return hopper_refusal(logits) or _dense_rows(logits)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "walks down from the largest logit, two passes for each", FOLDER / "v1_naive.cu", _few_passes),
        Variant(
            "v2_radix", v2_radix, "thresholds by radix search: histograms of counts and of masses", FOLDER / "v2_radix.cu", _dense_rows
        ),
        Variant(
            "v3_cluster",
            v3_cluster,
            "the row stays in a cluster's shared memory; maxima of eight lanes leave few candidates",
            FOLDER / "v3_cluster.cu",
            _fits_a_cluster,
        ),
        Variant(
            "v4_look_again",
            v4_look_again,
            "nothing is kept: threads with a large maximum read their part once more",
            FOLDER / "v4_look_again.cu",
            _on_hopper,
        ),
        Variant(
            "v5_race",
            v5_race,
            "without a small k: who wins is drawn first, and then asked whether it belongs to the nucleus",
            FOLDER / "v5_race.cu",
            _on_hopper,
        ),
    )
}
