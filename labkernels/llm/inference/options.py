"""What an engine may be told, checked: its counts, the type of its cache, the room for it, tokens of prompts and settings of requests."""

from __future__ import annotations

import torch

from labkernels.errors import ArgumentError
from labkernels.kvcache.layout import FULL_DTYPES, LARGEST
from labkernels.llm.config import ModelConfig
from labkernels.llm.inference.requests import SamplingParams
from labkernels.operation import dtype_name

CACHE_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
MOST_CPU_TOKENS = 1 << 16  # of a cache whose size nobody gave


def affordable_pages(c: ModelConfig, device: torch.device, page_size: int, dtype: torch.dtype, memory: float) -> int:
    """Pages that there is memory for."""
    of_head = c.head_dim * dtype.itemsize + (4 if dtype in LARGEST else 0)
    page = 2 * c.num_layers * c.num_kv_heads * page_size * of_head
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, int(free * memory) // page)
    import psutil

    return max(1, min(MOST_CPU_TOKENS // page_size, psutil.virtual_memory().available // 4 // page))


def cache_dtype_of(given, model_dtype: torch.dtype) -> torch.dtype:
    dtype = model_dtype if given is None else CACHE_DTYPES.get(given, given)
    if dtype is not model_dtype and dtype not in LARGEST or dtype not in (*FULL_DTYPES, *LARGEST):
        raise ArgumentError(f"Engine: cache_dtype is {given!r}; it must be None, 'int8' or 'fp8' (the model is {dtype_name(model_dtype)})")
    return dtype


def are_tokens(tokens: tuple, vocab_size: int) -> bool:
    """All of them plain ints within the vocabulary? Quicker than to look at each of 8192."""
    return set(map(type, tokens)) == {int} and min(tokens) >= 0 and max(tokens) < vocab_size


def check_counts(counts: dict[str, int]) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"Engine: {name} is {value!r}; it must be an int of at least 1")


def known_settings(settings: dict) -> dict:
    known = set(SamplingParams.__dataclass_fields__)
    if unknown := [name for name in settings if name not in known]:
        raise ArgumentError(f"generate: there is no setting {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return settings
