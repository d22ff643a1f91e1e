"""Muon: momentum, made orthogonal (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

Notable:
- the momentum of a matrix, U S V^T, becomes about U V^T: every direction is learnt at the same pace, whatever its gradient's size
- no SVD: five steps of a Newton-Schulz iteration in bfloat16, products alone. Two of its three products are a matrix times its own
  transpose, and take `symmetric_matmul`, which computes one triangle: 29% fewer FLOPs for 1536 x 4096
- matrices of one shape are iterated together, as one batch; stacked projections (q, k, v; gate, up) are matrices of their own
- the update is scaled to the size that AdamW's has, 0.2 sqrt(max(rows, columns)) (Liu et al., arXiv:2502.16982), so both share a learning
  rate and decay
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from labkernels.errors import ArgumentError
from labkernels.llm.training.optim import ExactState, loss_of
from labkernels.symmetric_matmul import symmetric_matmul

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of X, (X X^T) X and (X X^T)^2 X: small singular values grow threefold a step, all end near 1
BATCH_ELEMENTS = 1 << 28  # what is iterated at a time, in elements: 0.5 GB in bfloat16


def newton_schulz(g: torch.Tensor, steps: int = 5, kernel: str = "labkernels") -> torch.Tensor:
    """g (rows, columns) or (batch, rows, columns) to about U V^T of its singular value decomposition, singular values near 1, but for tiny
    ones; of g's shape and dtype.

    `kernel`: "labkernels" takes symmetric_matmul for the symmetric products, "torch" computes them whole.
    """
    a, b, c = COEFFICIENTS
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g).contiguous()  # the smaller side is squared
    x = x / (x.norm(dim=(-2, -1), keepdim=True, dtype=torch.float32) + 1e-7).to(x.dtype)
    product = symmetric_matmul if kernel == "labkernels" else _whole
    multiply_add = torch.baddbmm if x.dim() == 3 else torch.addmm
    for _ in range(steps):
        square = product(x)  # X X^T
        polynomial = product(square, square, c, b)  # b X X^T + c (X X^T)^2: a symmetric matrix squared is one times its transpose
        x = multiply_add(x, polynomial, x, beta=a)
    return x.mT if tall else x


def _whole(x: torch.Tensor, c: torch.Tensor | None = None, alpha: float = 1.0, beta: float = 1.0) -> torch.Tensor:
    if c is None:
        return x @ x.mT
    return (torch.baddbmm if x.dim() == 3 else torch.addmm)(c, x, x.mT, alpha=alpha, beta=beta)


class Muon(ExactState):
    """Muon for matrices (Nesterov momentum, decoupled weight decay). For the rest, embeddings, head and norms, use `AdamW` beside it.

    A group may have "rows", how many rows belong to each of the matrices stacked in its weights. bfloat16 weights keep a float32 master.
    `step(factor)` as AdamW's. `kernel` as in `newton_schulz`.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 3e-4,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        steps: int = 5,
        kernel: str = "labkernels",
    ):
        if kernel not in ("labkernels", "torch"):
            raise ArgumentError(f"Muon: kernel is {kernel!r}; it must be 'labkernels' or 'torch'")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rows": None})
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() != 2:
                    raise ArgumentError(f"Muon: a weight has shape {tuple(p.shape)}; it takes matrices")
                if group["rows"] is not None and sum(group["rows"]) != p.shape[0]:
                    raise ArgumentError(f"Muon: rows are {tuple(group['rows'])}, a weight of the group has {p.shape[0]}")
        self.newton_schulz_steps, self.kernel = steps, kernel
        self._taken: torch.Tensor | float = 1.0  # of the step that is being made

    @torch.no_grad()
    def step(self, closure=None, *, factor: torch.Tensor | None = None):
        """As AdamW's."""
        loss = loss_of(closure)
        self._taken = 1.0 if factor is None else factor.isfinite().float()  # 0.0 where nothing may change: nobody waits to know
        by_shape: dict[tuple, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)  # (momentum's piece, update's piece)
        updates = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                nesterov = self._momentum(p, group, factor)
                update = torch.empty_like(nesterov)
                updates.append((p, group, update))
                rows = group["rows"] or (nesterov.shape[0],)
                for piece, target in zip(nesterov.split(list(rows)), update.split(list(rows))):
                    by_shape[tuple(piece.shape)].append((piece, target))
        for shape, pieces in by_shape.items():
            self._orthogonalise(shape, pieces)
        for p, group, update in updates:
            self._apply(p, group, update)
        return loss

    def _momentum(self, p: torch.Tensor, group: dict, factor: torch.Tensor | None) -> torch.Tensor:
        """The momentum with this step's gradient, and that gradient once more (Nesterov), bfloat16 on a GPU and float32 elsewhere."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p, dtype=torch.float32)
            if p.dtype != torch.float32:
                state["master"] = p.detach().float()
        grad, share = p.grad.float(), 1 - group["momentum"]
        if factor is not None:
            grad, share = torch.where(factor.isfinite(), grad * factor, 0.0), share * self._taken
        state["momentum"].lerp_(grad, share)
        return grad.lerp(state["momentum"], group["momentum"]).to(torch.bfloat16 if p.is_cuda else torch.float32)

    def _orthogonalise(self, shape: tuple, pieces: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        at_once = max(1, BATCH_ELEMENTS // (shape[0] * shape[1]))
        scale = 0.2 * max(shape) ** 0.5 * self._taken
        for first in range(0, len(pieces), at_once):
            batch = pieces[first : first + at_once]
            kernel = self.kernel if batch[0][0].is_cuda else "torch"  # the emulator would take seconds
            made = newton_schulz(torch.stack([piece for piece, _ in batch]), self.newton_schulz_steps, kernel)
            torch._foreach_copy_([target for _, target in batch], [one * scale for one in made.unbind()])

    def _apply(self, p: torch.Tensor, group: dict, update: torch.Tensor) -> None:
        weight, decay = self.state[p].get("master", p), group["lr"] * group["weight_decay"]
        stays = 1 - decay if isinstance(self._taken, float) else torch.where(self._taken > 0, 1 - decay, 1.0)
        weight.mul_(stays).add_(update, alpha=-group["lr"])
        if weight is not p:
            p.copy_(weight)


def muon_groups(model: nn.Module) -> list[dict]:
    """The matrices of a Transformer's blocks by what is stacked in them, for `Muon`; the other weights are not in it."""
    c = model.config
    stacked = {
        "qkv_proj.weight": (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim),
        "gate_up_proj.weight": (c.ffn_dim, c.ffn_dim),
    }
    groups: dict[tuple | None, list] = defaultdict(list)
    for name, p in model.blocks.named_parameters():
        if p.dim() == 2 and p.requires_grad:
            groups[next((rows for end, rows in stacked.items() if name.endswith(end)), None)].append(p)
    return [{"params": params, "rows": rows} for rows, params in groups.items()]
