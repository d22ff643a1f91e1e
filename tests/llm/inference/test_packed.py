"""What one copy brings is what was written, and nobody writes what is still being copied."""

from types import SimpleNamespace

import torch

from labkernels.llm.inference.packed import Packed

SHAPES = {"tokens": (torch.int64, (3,)), "shares": (torch.float32, (5,)), "table": (torch.int32, (2, 3))}


def test_numbers_are_on_the_device_when_they_are_sent_and_not_before():
    packed = Packed(SHAPES, torch.device("cpu"))
    numbers = packed.arrays()
    numbers["tokens"][:], numbers["shares"][1], numbers["table"][1] = [7, 2**40, -1], 0.5, [4, 5, 6]
    assert not any(tensor.any() for tensor in packed.tensors.values())
    packed.send()
    assert packed.tensors["tokens"].tolist() == [7, 2**40, -1] and packed.tensors["shares"].tolist() == [0, 0.5, 0, 0, 0]
    assert packed.tensors["table"].tolist() == [[0, 0, 0], [4, 5, 6]]
    assert all(tensor.data_ptr() % 16 == 0 for tensor in packed.tensors.values()), "kernels read 16 bytes at a time"


def test_whoever_writes_waits_for_the_copy_of_what_was_written_before(monkeypatch):
    packed, seen = Packed(SHAPES, torch.device("cpu")), []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    packed._copied = SimpleNamespace(record=lambda stream: seen.append("sent"), synchronize=lambda: seen.append("waits"))
    for _ in range(2):
        packed.arrays()
        packed.send()
    assert seen == ["waits", "sent", "waits", "sent"]
