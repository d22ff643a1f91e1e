"""Batches come to the GPU whole, while it works on something else, and without anybody waiting."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from labkernels.llm.data.loader import Loader
from labkernels.llm.data.shards import TokenDataset, prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("data")
    (folder / "texts").mkdir()
    draw = np.random.default_rng(0)
    for number in range(40):
        (folder / "texts" / f"{number}.txt").write_text(" ".join(map(str, draw.integers(0, 999, 200))))
    return prepare(folder / "texts", 300, folder=folder / "tokens")


@pytest.mark.gpu
def test_batches_arrive_on_the_gpu_while_it_works(data):
    on_cpu = Loader(data["train"], 4, 64, boundaries=True, prefetch=0)
    want = [next(on_cpu) for _ in range(40)]
    loader = Loader(data["train"], 4, 64, boundaries=True, device="cuda", prefetch=3)
    next(loader)
    loader.position = 0
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    got = []
    try:
        for _ in range(40):
            batch = next(loader)
            torch.cuda._sleep(3_000_000)  # the copies of the next run beside this
            got.append([value + 0 for value in (batch.inputs, batch.targets, batch.positions, batch.cu_seqlens)])
            del batch  # its memory must not be given to the next copy before the additions have run
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for tensors, batch in zip(got, want, strict=True):
        assert all(tensor.is_cuda for tensor in tensors)
        assert all(torch.equal(tensor.cpu(), one) for tensor, one in zip(tensors, (batch.inputs, batch.targets, batch.positions, batch.cu_seqlens), strict=True))
    loader.close()
