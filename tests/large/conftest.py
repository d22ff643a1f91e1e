"""Tests of large tensors leave the GPU's memory to those beside them."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def memory_is_given_back() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
