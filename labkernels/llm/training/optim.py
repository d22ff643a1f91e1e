"""Optimisers and schedules of the trainer.

Notable:
- `AdamW`: one kernel a tensor (adamw.cu) that reads a weight, its gradient and its moments once; bfloat16 weights keep a float32 master
  beside them, or are rounded up or down at random so that small steps are not lost; clipping is a factor inside the kernel. Float32
  weights take PyTorch's fused AdamW.
- weights of matrices decay, those of norms do not; Muon (muon.py) takes the matrices of the blocks and leaves embeddings, head and norms
  to AdamW
- a schedule is a factor of the learning rate for each step: warm-up and cosine, or warm-up, stable and decay (WSD)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from labkernels.cuda.settled import wrote
from labkernels.cuda.variants import ceil_div, kernel
from labkernels.errors import ArgumentError

FILE = Path(__file__).with_name("adamw.cu")
MASTERS = ("float32", "stochastic", "none")
PER_BLOCK = 8 * 256  # elements


class ExactState(torch.optim.Optimizer):
    """An optimiser whose state is loaded in the dtypes that it was saved in: PyTorch's would round float32 masters and moments to the weight's."""

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(saved, own, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor):
                    self.state[p][name] = value.detach().to("cpu" if value.dim() == 0 and name == "step" else p.device, copy=True)


def loss_of(closure: Callable[[], torch.Tensor] | None):
    """What an optimiser's step is to do first: have the gradients computed, by who wants it so."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class AdamW(ExactState):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), float32 arithmetic whatever the weights are.

    `master`: what remembers the small bits of bfloat16 weights. "float32": a copy beside each; "stochastic": nothing, the weight is
    rounded up or down at random, right on average; "none": nothing, rounded to nearest, so steps below 1/256 of a weight are lost.
    `moment_dtype` float32 or bfloat16. `step(factor)` multiplies gradients by `factor`, a float32 tensor of one number on their device;
    nothing is changed where it is not finite.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        master: str = "float32",
        moment_dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ):
        if master not in MASTERS:
            raise ArgumentError(f"AdamW: master is {master!r}; it must be one of {', '.join(map(repr, MASTERS))}")
        if moment_dtype not in (torch.float32, torch.bfloat16):
            raise ArgumentError(f"AdamW: moment_dtype is {moment_dtype}; it must be torch.float32 or torch.bfloat16")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.master, self.moment_dtype, self.seed = master, moment_dtype, seed
        self.shards: dict[int, int] = {}  # by id of a weight: which part of a whole it is, so that parts are rounded by other numbers
        self._skipped: dict[torch.device, torch.Tensor] = {}  # steps that changed nothing, which nobody waits to know; float64
        self._betas: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def step(self, closure=None, *, factor: torch.Tensor | None = None):
        """`closure`, if given, computes the gradients anew; its loss is returned, as PyTorch's optimisers do."""
        loss = loss_of(closure)
        numbers = {id(p): number for number, p in enumerate(p for group in self.param_groups for p in group["params"])}
        corrections: dict[tuple, torch.Tensor] = {}  # by device, betas and step: one for all weights, as a rule
        in_a_row, launched = [], set()  # with nothing between them on the GPU, so that each after the first may be launched early
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                self._begin(p)
            whole = [p for p in params if p.dtype == torch.float32 and self.moment_dtype == torch.float32]
            if whole:
                self._fused(whole, group, factor)
            in_a_row += [(p, group) for p in params if p.dtype != torch.float32 or self.moment_dtype != torch.float32]
        for p, group in in_a_row:
            self._one(p, group, factor, numbers[id(p)], corrections, launched)
        if factor is not None:
            for device in {device for device, *_ in corrections}:
                self._skipped[device] += ~factor.to(device).isfinite()
        return loss

    def state_dict(self) -> dict:
        """Steps that changed nothing do not count in it: on a GPU they are counted here, where it is waited for anyway."""
        for device, skipped in self._skipped.items():
            if count := int(skipped):
                for p, state in self.state.items():
                    if p.device == device and state["step"].device != device:
                        state["step"] -= count
            skipped.zero_()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self._skipped.clear()
        super().load_state_dict(state_dict)

    def _begin(self, p: torch.Tensor) -> None:
        """The state that these settings need; one that was saved with others is brought to them."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in state:
                state[name] = torch.zeros_like(p, dtype=self.moment_dtype)
            elif state[name].dtype != self.moment_dtype:
                state[name] = state[name].to(self.moment_dtype)
        if p.dtype == torch.float32 or self.master != "float32":
            state.pop("master", None)
        elif "master" not in state:
            state["master"] = p.detach().float()

    def _fused(self, params: list[torch.Tensor], group: dict, factor: torch.Tensor | None) -> None:
        """PyTorch's fused AdamW; it divides by what it is given, so it is given 1 / factor. It counts steps where the weights are."""
        states = [self.state[p] for p in params]
        for state, p in zip(states, params):
            if state["step"].device != p.device:
                state["step"] = state["step"].to(p.device)
        steps = [state["step"] for state in states]
        found = None if factor is None else (~factor.isfinite()).float().reshape(1)
        moments = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            params,
            [p.grad for p in params],
            *moments,
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=None if factor is None else factor.reshape(1).reciprocal(),
            found_inf=found,
        )
        wrote(*params, *moments[0], *moments[1])  # which that does not count
        if found is not None:
            torch._foreach_sub_(steps, [found.squeeze()] * len(steps))  # a step that was skipped does not count

    def _one(self, p: torch.Tensor, group: dict, factor: torch.Tensor | None, number: int, corrections: dict, launched: set) -> None:
        state = self.state[p]
        if factor is not None and not p.is_cuda and not factor.isfinite():
            return
        state["step"] += 1
        (beta1, beta2), step = group["betas"], int(state["step"])
        numbers = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "eps": group["eps"], "decay": group["lr"] * group["weight_decay"]}
        same = p.device, beta1, beta2, step
        if same not in corrections:
            corrections[same] = self._corrections(*same)
        numbers["corrections"] = corrections[same]
        seed = hash((self.seed, step, number, self.shards.get(id(p), 0))) & 0xFFFFFFFF
        local = [getattr(t, "_local_tensor", t) for t in (p, p.grad, state["exp_avg"], state["exp_avg_sq"], state.get("master")) if t is not None]
        if not local[0].numel():  # as a rank's part of a small weight may be
            return
        # Then the kernel before is this one for another weight, and nothing that this one reads is still to come.
        early = same in launched and local[1].is_contiguous()
        launched.add(same)
        update = adamw_kernel if p.is_cuda else adamw_torch
        update(*local[:4], local[4] if len(local) > 4 else None, factor, self.master == "stochastic", seed, **numbers, early=early)
        if local[0] is not p:  # the part of it that is here
            wrote(p)

    def _corrections(self, device: torch.device, beta1: float, beta2: float, step: int) -> torch.Tensor:
        """1 / (1 - beta1^t) and 1 / sqrt(1 - beta2^t) where the weights are, t the steps that were taken."""
        if (device, beta1, beta2) not in self._betas:
            where = {"dtype": torch.float64, "device": device}
            self._betas[device, beta1, beta2] = torch.tensor([beta1, beta2], **where), torch.tensor([-1.0, -0.5], **where)
        betas, exponents = self._betas[device, beta1, beta2]
        skipped = self._skipped.setdefault(device, torch.zeros((), dtype=torch.float64, device=device))
        return (1 - betas ** (step - skipped).clamp(min=1)).pow(exponents).float()


def adamw_kernel(weight, grad, m, v, master, factor, stochastic, seed, *, lr, beta1, beta2, eps, decay, corrections, early=False) -> None:
    """One step of adamw.cu, in place. All tensors have the weight's shape; `factor` is one float32 number or None, `corrections` are two. `early`: what it
    reads is there before the kernel launched before it ends."""
    tensors = [_dense(name, t) for name, t in (("weight", weight), ("m", m), ("v", v), ("master", master)) if t is not None]
    grad = grad.contiguous()
    if grad.data_ptr() % 16 or any(t.data_ptr() % 16 for t in tensors):
        raise ArgumentError("adamw: a tensor does not begin on a multiple of 16 bytes")
    flags = (str(master is not None).lower(), str(stochastic and weight.dtype == torch.bfloat16).lower())
    step = kernel(FILE, "adamw", weight.dtype, grad.dtype, m.dtype, *flags)
    count = weight.numel()
    numbers = (lr, beta1, beta2, eps, decay)
    if count:
        step(ceil_div(count, PER_BLOCK), 256, (weight, master, grad, m, v, factor, corrections, count, *numbers, seed), early=early)
        wrote(weight, master, m, v)


def adamw_torch(weight, grad, m, v, master, factor, stochastic, seed, *, lr, beta1, beta2, eps, decay, corrections, early=False) -> None:
    """The same in PyTorch, in place: for weights on the CPU, and what the kernel is tested against. Random bits are other ones; nothing is early."""
    g = grad.float() * (1.0 if factor is None else factor)
    w = (weight if master is None else master).float()
    first, second = m.float().lerp_(g, 1 - beta1), v.float().lerp_(g * g, 1 - beta2)
    w = w - decay * w - lr * corrections[0] * first / (second.sqrt() * corrections[1] + eps)
    m.copy_(first), v.copy_(second)
    if master is not None:
        master.copy_(w)
    weight.copy_(stochastic_bf16(w, seed) if stochastic and weight.dtype == torch.bfloat16 else w)


def stochastic_bf16(x: torch.Tensor, seed: int) -> torch.Tensor:
    """x float32, rounded to bfloat16 up or down with the probability that makes the mean x."""
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.randint(0, 1 << 16, x.shape, generator=generator, device=x.device, dtype=torch.int32)
    moved = ((x.view(torch.int32) + noise) & -65536).view(torch.float32)
    return torch.where(x.isfinite(), moved, x).to(torch.bfloat16)


def _dense(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_contiguous():
        raise ArgumentError(f"adamw: {name} is not contiguous")
    return tensor


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices, which decay, and vectors (norms), which do not; each weight once, tied or not, in the model's order."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() >= 2], [p for p in trained if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def gradient_norm(params: Iterable[torch.Tensor]) -> torch.Tensor:
    """The 2-norm of all gradients together, float32, on their device: nobody waits for it."""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2, dtype=torch.float32)))


def clip_factor(norm: torch.Tensor, max_norm: float) -> torch.Tensor:
    """What gradients are multiplied by so that their norm is at most max_norm; 0: no clipping. NaN where the norm is not finite."""
    factor = torch.ones_like(norm) if max_norm <= 0 else (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return torch.where(norm.isfinite(), factor, torch.full_like(norm, math.nan))


def cosine(step: int, steps: int, warmup: int, floor: float = 0.1) -> float:
    """Rises for `warmup` steps to 1, then falls along half a cosine to `floor` at the last step."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd(step: int, steps: int, warmup: int, floor: float = 0.0, decay: float = 0.2) -> float:
    """Warm-up, stable, decay (Hu et al., MiniCPM, arXiv:2404.06395): 1 until the last `decay` of the steps, then a line to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    begin = max(warmup, int(steps * (1 - decay)))
    if step < begin:
        return 1.0
    return 1.0 - (1.0 - floor) * min(1.0, (step - begin) / max(1, steps - 1 - begin))


def constant(step: int, steps: int, warmup: int, floor: float = 1.0) -> float:
    """Warm-up, then 1."""
    return min(1.0, (step + 1) / max(1, warmup))


SCHEDULES = {"cosine": cosine, "wsd": wsd, "constant": constant}
