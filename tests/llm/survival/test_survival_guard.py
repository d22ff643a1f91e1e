"""Steps that would harm a model are not taken, and told; what stays high is accepted; nothing waits for the GPU."""
from __future__ import annotations

import math

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.llm.survival.guard import LossGuard, TrainingError


def losses(count: int, level: float = 3.0, noise: float = 0.03, seed: int = 0) -> list[float]:
    draw = torch.Generator().manual_seed(seed)
    return (level + noise * torch.randn(count, generator=draw)).tolist()


def run(guard: LossGuard, values, norms=None, device="cpu"):
    """(steps that were skipped, events)."""
    skipped, events = [], []
    for step, value in enumerate(values):
        norm = None if norms is None else torch.tensor(norms[step], device=device)
        if guard.check(step, torch.tensor(value, device=device), norm).item():
            skipped.append(step)
        events += guard.events(wait=True)
    return skipped, events


def test_an_ordinary_curve_is_left_alone():
    falling = [10 * math.exp(-step / 60) + value for step, value in enumerate(losses(500, level=2.0, noise=0.1))]
    assert run(LossGuard(), falling) == ([], [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [0, 5, 60])
def test_what_is_not_finite_is_skipped_from_the_first_step_on(value, step):
    values = losses(100)
    values[step] = value
    skipped, [event] = run(LossGuard(), values)
    assert skipped == [step] == [event.step] and event.kind == "not_finite" and str(event).startswith(f"step {step} skipped: loss {value:.4g}")


def test_a_gradient_that_is_not_finite_is_skipped():
    norms = [1.0] * 50
    norms[30] = math.inf
    skipped, [event] = run(LossGuard(), losses(50), norms)
    assert skipped == [30] and event.grad_norm == math.inf and "gradient norm inf" in str(event)


def test_a_spike_is_skipped_and_does_not_move_what_is_usual():
    values = losses(100)
    values[40], values[41], values[70] = 6.0, 4.0, 1e30
    guard = LossGuard()
    skipped, events = run(guard, values)
    assert skipped == [40, 41, 70] and [event.kind for event in events] == ["spike"] * 3 and guard.skipped == 3
    assert all(abs(event.usual - 3.0) < 0.05 for event in events) and "far above the usual 3" in str(events[0])


def test_a_rise_that_is_not_far_is_no_spike():
    values = losses(100)
    values[50] = 3.15  # five standard deviations
    values[51] = 3.25  # eight, but not a tenth of the mean
    assert run(LossGuard(), values)[0] == []


def test_before_it_knows_what_is_usual_nothing_is_a_spike():
    values = losses(30)
    values[10] = 9.0
    assert run(LossGuard(warm_up=20), values)[0] == []
    assert run(LossGuard(warm_up=5), values)[0] == [10]


def test_a_new_level_is_accepted_after_a_while_and_told():
    skipped, events = run(LossGuard(patience=4), losses(50) + losses(50, level=5.0, seed=1))
    assert skipped == [50, 51, 52, 53] and [event.kind for event in events] == ["spike"] * 4 + ["new_level"]
    assert "taken as the new level" in str(events[-1])
    higher = losses(50) + losses(50, level=5.0)
    higher[80] = 9.0
    assert run(LossGuard(), higher)[0][4:] == [80]


def test_nan_without_end_ends_training_and_says_what_to_change():
    guard = LossGuard(give_up=7)
    with pytest.raises(TrainingError, match="7 steps in a row .* up to step 26; none was taken.*lower learning rate"):
        run(guard, losses(20) + [math.nan] * 20)
    alternating = [math.nan if step % 2 else 3.0 for step in range(60)]
    assert len(run(LossGuard(give_up=7), alternating)[0]) == 30  # never in a row


def test_it_resumes_with_what_it_knows():
    values = losses(60)
    values[59] = 4.5
    whole, first, second = LossGuard(), LossGuard(), LossGuard()
    run(whole, values[:40]), run(first, values[:40])
    second.load_state_dict(first.state_dict())
    assert run(second, values[40:]) == run(whole, values[40:]) and whole.skipped == second.skipped == 1
    assert torch.equal(second.state_dict()["running"], whole.state_dict()["running"])
    fresh = LossGuard()
    fresh.load_state_dict(LossGuard().state_dict())
    assert run(fresh, values[40:])[0] == []  # it knows nothing: the spike would be seen only by one that resumed


def test_a_fused_optimizer_takes_its_answer_and_changes_nothing():
    weight = torch.nn.Parameter(torch.ones(8))
    optimizer, guard = torch.optim.AdamW([weight], lr=0.1, fused=True), LossGuard(warm_up=2)
    for step, loss in enumerate([3.0, 3.0, 3.0, math.nan, 9.0, 3.0]):
        before, weight.grad = weight.detach().clone(), torch.full((8,), loss)
        optimizer.found_inf, optimizer.grad_scale = guard.check(step, torch.tensor(loss)), None
        optimizer.step()
        assert torch.equal(weight, before) == (step in (3, 4)), step
    assert optimizer.state[weight]["step"].item() == 4 and weight.isfinite().all()


def test_mistakes_are_named():
    with pytest.raises(ArgumentError, match="LossGuard: .* must be positive"):
        LossGuard(window=0)


@pytest.mark.gpu
def test_on_a_gpu_nothing_is_waited_for():
    guard, values = LossGuard(), losses(60)
    values[30], values[45] = math.nan, 9.0
    tensors = [torch.tensor(value, device="cuda") for value in values]
    guard.check(-1, tensors[0], tensors[0])
    guard.events(wait=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        skips = [guard.check(step, value, value) for step, value in enumerate(tensors)]
        told = guard.events()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    told += guard.events(wait=True)
    assert [event.step for event in told] == [30, 45] and [step for step, skip in enumerate(skips) if skip.item()] == [30, 45]
