"""Checkpoints of a model that is spread over ranks: whole on the disk, so that any number of GPUs can go on from them.

Notable: what is written is what one process would write, by rank 0, through the same `CheckpointStore`: as atomic, and as safe against
truncated files and full disks. Saving brings each tensor together, one at a time; loading reads on rank 0 alone, sends each tensor to all
ranks, one at a time, and each keeps its part. Rank 0 needs CPU memory for the whole state, a GPU for the largest tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from labkernels.llm.parallel.tensor_parallel import Cut, cut, join


@dataclass(frozen=True)
class Place:
    """What this rank has of a weight, and of everything of its shape: a part along `cut` within `tensor_group`, of which `data_group` has
    rows each. None: all of it."""

    cut: Cut | None = None
    tensor_group: dist.ProcessGroup | None = None
    data_group: dist.ProcessGroup | None = None  # FSDP's: rows in chunks, as torch.chunk cuts them
    rows: int = 0  # of the part before it was cut into rows

    @property
    def number(self) -> int:
        """Which part this is: another one where ranks have other parts, the same where they have the same."""
        of_tensor = 0 if self.tensor_group is None else self.tensor_group.rank()
        return of_tensor * 2**16 + (0 if self.data_group is None else self.data_group.rank())

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's, of a whole tensor."""
        if self.cut is not None:
            whole = cut(whole, self.cut, self.tensor_group.rank(), self.tensor_group.size())
        if self.data_group is not None:
            first, last = self._range(self.data_group.rank())
            whole = whole[first:last]
        return whole

    def whole(self, part: torch.Tensor) -> torch.Tensor:
        """The whole tensor, on all ranks; all of them call it at the same time."""
        if self.data_group is not None:
            most = -(-self.rows // self.data_group.size())
            padded = part.new_zeros(most, *part.shape[1:])
            padded[: len(part)] = part
            part = torch.cat(_gathered(padded, self.data_group))[: self.rows]
        if self.cut is not None:
            part = join(_gathered(part.contiguous(), self.tensor_group), self.cut)
        return part

    def _range(self, rank: int) -> tuple[int, int]:
        most = -(-self.rows // self.data_group.size())
        return min(self.rows, rank * most), min(self.rows, (rank + 1) * most)


def _gathered(x: torch.Tensor, group: dist.ProcessGroup) -> list[torch.Tensor]:
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x, group=group)
    return parts


def whole_optimizer_state(optimizer: torch.optim.Optimizer, places: dict[int, Place], keep: bool) -> dict[str, Any]:
    """optimizer.state_dict() as one process would have it, on the CPU; `places` by id of its weights. Ranks that do not `keep` it take part."""
    state = optimizer.state_dict()
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    found = {}
    for number, values in sorted(state["state"].items()):
        found[number] = {}
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == weights[number].shape:
                value = places[id(weights[number])].whole(value)
            found[number][name] = value.cpu() if keep and isinstance(value, torch.Tensor) else value if keep else None
    return {"state": found, "param_groups": state["param_groups"]}


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    dtype: torch.dtype


def send_state(state: Any, device: torch.device, take: Callable[[tuple, torch.Tensor], torch.Tensor]) -> Any:
    """Rank 0's nested `state` on all ranks, with `take(path, whole tensor)` in place of each tensor."""
    skeleton = [_skeleton(state) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(skeleton, src=0)

    def walk(shape: Any, value: Any, path: tuple) -> Any:
        if isinstance(shape, _Tensor):
            whole = value.to(device) if value is not None else torch.empty(shape.shape, dtype=shape.dtype, device=device)
            whole = whole.contiguous()
            dist.broadcast(whole, src=0)
            return take(path, whole)
        if isinstance(shape, dict):
            return {name: walk(one, None if value is None else value[name], (*path, name)) for name, one in shape.items()}
        if isinstance(shape, (list, tuple)):
            return type(shape)(walk(one, None if value is None else value[i], (*path, i)) for i, one in enumerate(shape))
        return shape

    return walk(skeleton[0], state, ())


def _skeleton(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _Tensor(tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return {name: _skeleton(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_skeleton, value))
    return value
