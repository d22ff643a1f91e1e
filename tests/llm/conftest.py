"""What all tests of this folder share."""

from collections.abc import Callable

import pytest
import torch

from labkernels.llm.data.corpora import corpus
from labkernels.llm.data.shards import TokenDataset, prepare


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sums(tmp_path_factory) -> Callable[[int], TokenDataset]:
    """250 documents of sums as tokens, the shortest of so many sentences: short ones, whose ends stand in many batches."""

    def made(least: int = 2) -> TokenDataset:
        folder = tmp_path_factory.mktemp("text")
        for number in range(250):
            (folder / f"{number}.txt").write_text("".join(f"{i} times {number} is {i * number}, and so it goes on. " for i in range(least + number % 5)))
        return prepare(corpus(folder), 300, folder=tmp_path_factory.mktemp("tokens") / "tokens", progress=False)

    return made
