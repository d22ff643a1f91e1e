"""Optimisers and schedules: the kernel against the formula and PyTorch, rounding, clipping, what decays."""

import math

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.ffn import boxes
from labkernels.llm.training import optim
from labkernels.llm.config import ModelConfig
from labkernels.llm.model import Transformer
from labkernels.llm.training.muon import Muon

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NUMBERS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "decay": 1e-3}
CORRECTIONS = [1.5, 2.0]


def tensors(count, weight, moment, master, device):
    torch.manual_seed(count)
    w, g = torch.randn(count).to(device, weight), torch.randn(count).to(device, weight)
    m, v = (0.1 * torch.randn(count)).to(device, moment), torch.rand(count).to(device, moment)
    return [w, g, m, v, w.float() if master else None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 8, 2051])
@pytest.mark.parametrize("moment, master", [(torch.float32, True), (torch.float32, False), (torch.bfloat16, False)])
def test_the_kernel_is_the_formula(count, moment, master, device):
    ours, theirs = ([t if t is None else t.clone() for t in tensors(count, torch.bfloat16, moment, master, device)] for _ in range(2))
    factor = torch.tensor(0.5, device=device)
    numbers = {**NUMBERS, "corrections": torch.tensor(CORRECTIONS, device=device)}
    optim.adamw_kernel(*ours, factor, False, 0, **numbers)
    optim.adamw_torch(*theirs, factor, False, 0, **numbers)
    before = tensors(count, torch.bfloat16, moment, master, device)[0]
    assert count == 1 or not torch.equal(ours[0], before)
    for a, b in zip(ours, theirs):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=2**-7 if a.dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("update", [optim.adamw_kernel, optim.adamw_torch])
def test_stochastic_rounding_is_right_on_average_where_rounding_to_nearest_stands_still(update, device):
    count, step = 20_000, 2.0**-11  # an eighth of the distance of two bfloat16s near 1
    for stochastic in (True, False):
        w, g = torch.ones(count, dtype=torch.bfloat16, device=device), torch.ones(count, dtype=torch.bfloat16, device=device)
        m, v = torch.ones(count, device=device), torch.ones(count, device=device)
        update(w, g, m, v, None, None, stochastic, 3, **{**NUMBERS, "lr": step, "decay": 0.0, "corrections": torch.ones(2, device=device)})
        moved = (1 - w.float()).mean().item()
        assert moved == pytest.approx(step, rel=0.1) if stochastic else moved == 0
        if stochastic:
            assert set(w.unique().tolist()) == {1.0, 1 - 2.0**-8}


@pytest.mark.parametrize("device", DEVICES)
def test_a_factor_that_is_not_finite_changes_nothing(device):
    ours = tensors(100, torch.bfloat16, torch.float32, True, device)
    before = [t.clone() for t in ours]
    optim.adamw_kernel(*ours, torch.tensor(math.nan, device=device), False, 0, **NUMBERS, corrections=torch.ones(2, device=device))
    assert all(torch.equal(a, b) for a, b in zip(ours, before))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_steps_are_those_of_pytorchs_adamw(dtype):
    torch.manual_seed(0)
    start, grads = torch.randn(40, 30).to(dtype), [torch.randn(40, 30).to(dtype) for _ in range(5)]
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    mine = optim.AdamW([ours], lr=1e-2, weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for number, grad in enumerate(grads):
        ours.grad, theirs.grad = grad.clone(), grad.float() * 0.5
        mine.step(factor=torch.tensor(0.5))
        reference.step()
        if number == 2:  # a skipped step does not count
            ours.grad = grad.clone()
            mine.step(factor=torch.tensor(math.nan))
    torch.testing.assert_close(ours.float(), theirs.detach(), rtol=0 if dtype == torch.float32 else 2**-8, atol=1e-6)
    if dtype == torch.bfloat16:
        torch.testing.assert_close(mine.state[ours]["master"], theirs.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu_a_skipped_step_does_not_count(dtype):
    torch.manual_seed(0)
    start, grads = torch.randn(40, 32, device="cuda").to(dtype), torch.randn(6, 40, 32, device="cuda").to(dtype)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    with_one, without = optim.AdamW([ours], lr=1e-2), optim.AdamW([theirs], lr=1e-2)
    for number, grad in enumerate(grads):
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        with_one.step(factor=torch.tensor(1.0, device="cuda"))
        without.step(factor=torch.tensor(1.0, device="cuda"))
        if number == 0:  # when it matters most
            ours.grad = grad.clone()
            with_one.step(factor=torch.tensor(math.nan, device="cuda"))
    assert torch.equal(ours, theirs)
    assert float(with_one.state_dict()["state"][0]["step"]) == 6


def test_each_tensor_and_each_part_of_one_is_rounded_by_its_own_numbers():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(3)]

    def rounded(shards):
        for p in weights:
            p.data.fill_(1.0)
            p.grad = torch.ones_like(p)
        optimizer = optim.AdamW(weights, lr=2.0**-9, weight_decay=0.0, master="stochastic")
        optimizer.shards = shards
        optimizer.step()
        return [p.detach().float() for p in weights]

    first = rounded({})
    ups = [(a < 1).float() for a in first]
    assert all(0.3 < (a != b).float().mean() < 0.7 for a, b in ((ups[0], ups[1]), (ups[1], ups[2]))), "tensors of one step are independent"
    again, other = rounded({}), rounded({id(weights[1]): 3})
    assert all(map(torch.equal, first, again)) and torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


@pytest.mark.parametrize("optimizer", [optim.AdamW, Muon])
def test_a_closure_is_called_with_gradients_on_and_its_loss_returned(optimizer):
    p = torch.nn.Parameter(torch.ones(4, 4))
    made = optimizer([p], lr=0.1)

    def closure():
        made.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    losses = [made.step(closure).item() for _ in range(3)]
    assert losses[0] == 16.0 > losses[1] > losses[2], "each of gradients that the closure computed"
    assert made.step() is None


def test_a_kernel_is_launched_early_only_right_after_another_of_the_step(monkeypatch):
    """Else it would read, before it waits, what the launch before it writes: a moment that was just made, a gradient that is copied, the corrections."""
    order = []
    for name, note in (("_begin", lambda *_: "begin"), ("_fused", lambda *_: "fused"), ("_corrections", lambda *_: "corrections")):
        method = getattr(optim.AdamW, name)
        monkeypatch.setattr(optim.AdamW, name, lambda *given, method=method, note=note: order.append(note()) or method(*given))
    update = optim.adamw_torch
    monkeypatch.setattr(optim, "adamw_torch", lambda w, *given, early, **more: order.append((w.numel(), early)) or update(w, *given, early=early, **more))

    def weight(*shape, dtype=torch.bfloat16, dense=True):
        p = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
        p.grad = torch.ones_like(p) if dense else torch.ones(shape[::-1], dtype=dtype).t()
        return p

    groups = [[weight(0), weight(2), weight(3)], [weight(4), weight(2, 3, dense=False), weight(7), weight(8, dtype=torch.float32)]]
    optimizer = optim.AdamW([{"params": groups[0]}, {"params": groups[1]}])
    for _ in range(2):
        order.clear()
        optimizer.step()
        first = order.index("corrections")
        assert order[:first] == ["begin"] * 3 + ["begin"] * 4 + ["fused"]
        assert order[first + 1 :] == [(2, False), (3, True), (4, True), (6, False), (7, True)]
    optimizer.param_groups[1]["betas"] = (0.5, 0.95)
    order.clear()
    optimizer.step()
    assert [entry for entry in order if entry[0] == 4] == [(4, False)], "its own corrections are new"


@pytest.mark.gpu
def test_on_a_gpu_a_product_right_after_a_step_sees_the_new_weights():
    """A kernel that begins early asks for its weights beside adamw, which has said that the next may begin: only the version keeps it from that."""
    torch.manual_seed(0)
    embed, ffn = 2048, 5632
    x = torch.randn(4, embed, device="cuda").bfloat16()
    shapes = [(4096, 4096)] * 4 + [(2 * ffn, embed), (embed, ffn)]
    weights = [torch.nn.Parameter(0.02 * torch.randn(shape, device="cuda").bfloat16()) for shape in shapes]
    *_, w1, w2 = weights
    optimizer = optim.AdamW(weights, lr=1e-2)
    for turn in range(20):
        for p in weights:
            p.grad = torch.randn_like(p)
        with torch.no_grad():
            boxes.v6_boxes(x, w1, w2, activation="swiglu")
            optimizer.step()
            got = boxes.v6_boxes(x, w1, w2, activation="swiglu")
            torch.cuda.synchronize()
            assert torch.equal(got, boxes.v6_two_kernels(x, w1, w2, activation="swiglu")), turn
    graph = torch.cuda.CUDAGraph()
    state = optimizer.state[w2]
    numbers = {**NUMBERS, "corrections": torch.tensor(CORRECTIONS, device="cuda")}
    with torch.no_grad(), torch.cuda.graph(graph):
        optim.adamw_kernel(w2, w2.grad, state["exp_avg"], state["exp_avg_sq"], state["master"], None, False, 0, **numbers)
        got = boxes.v6_boxes(x, w1, w2, activation="swiglu")
    for turn in range(20):
        graph.replay()
        torch.cuda.synchronize()
        with torch.no_grad():
            assert torch.equal(got, boxes.v6_two_kernels(x, w1, w2, activation="swiglu")), turn


def test_without_masters_small_steps_are_lost():
    """What the masters are for: the planted mistake of training bf16 weights alone."""
    weights = {}
    for master in optim.MASTERS:
        p = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = optim.AdamW([p], lr=1e-4, weight_decay=0.0, master=master)
        for _ in range(20):
            p.grad = torch.ones_like(p)
            optimizer.step()
        weights[master] = p.float().mean().item()
    assert weights["none"] == 1.0
    assert weights["float32"] == pytest.approx(1 - 2e-3, abs=2e-3) and weights["float32"] < 1
    assert weights["stochastic"] == pytest.approx(1 - 2e-3, abs=2e-4)


def test_states_keep_their_dtype_when_they_are_loaded():
    p = torch.nn.Parameter(torch.randn(8, 8).bfloat16())
    first = optim.AdamW([p], lr=1e-3)
    p.grad = torch.randn(8, 8).bfloat16()
    first.step()
    again = optim.AdamW([p], lr=1e-3)
    again.load_state_dict(first.state_dict())
    torch.optim.Optimizer.load_state_dict(rounded := optim.AdamW([p], lr=1e-3), first.state_dict())
    assert rounded.state[p]["master"].dtype == torch.bfloat16  # the planted mistake: PyTorch's own way
    for name, value in first.state[p].items():
        assert torch.equal(again.state[p][name], value) and again.state[p][name].dtype == torch.float32


def test_a_state_that_was_saved_with_other_settings_is_brought_to_these():
    def begun(p, steps=1, **settings):
        optimizer = optim.AdamW([p], lr=1e-3, weight_decay=0.0, **settings)
        for _ in range(steps):
            p.grad = torch.ones_like(p)
            optimizer.step()
        return optimizer

    p = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    saved = begun(p, master="stochastic", moment_dtype=torch.bfloat16).state_dict()
    again = begun(p, 0)
    again.load_state_dict(saved)
    for _ in range(4):  # each an eighth to a quarter of the distance of two bfloat16s: without a master all are lost
        again.step()
    state = again.state[p]
    assert state["exp_avg"].dtype == state["master"].dtype == torch.float32 and (state["master"] < 0.9985).all() and int(state["step"]) == 5
    back = begun(p, 0, master="none", moment_dtype=torch.bfloat16)
    back.load_state_dict(again.state_dict())
    back.step()
    assert "master" not in back.state[p] and back.state[p]["exp_avg"].dtype == torch.bfloat16
    assert int(back.state[p]["step"]) == 6 and back.state[p]["exp_avg"].float().max() > 0.4  # what was gathered is there still


def test_matrices_decay_and_norms_do_not_and_a_tied_weight_is_there_once():
    model = Transformer(ModelConfig(vocab_size=64, embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=32))
    groups = optim.parameter_groups(model, 0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(p.dim() == 1 for p in groups[1]["params"]) and len(groups[1]["params"]) == 5
    together = [p for group in groups for p in group["params"]]
    assert sum(p.numel() for p in together) == sum(p.numel() for p in model.parameters())


def test_the_norm_and_the_factor_that_clips():
    a, b = torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(5))
    assert optim.gradient_norm([a, b]) == 0
    a.grad, b.grad = torch.full((3, 4), 2.0), torch.full((5,), 1.0)
    norm = optim.gradient_norm([a, b])
    assert norm.item() == pytest.approx(math.sqrt(48 + 5))
    assert optim.clip_factor(norm, 1.0).item() == pytest.approx(1 / norm.item(), rel=1e-4)
    assert optim.clip_factor(norm, 100.0) == 1 and optim.clip_factor(norm, 0.0) == 1
    assert optim.clip_factor(torch.tensor(math.inf), 1.0).isnan()


def test_the_schedules():
    lr = [optim.cosine(step, 100, 10, 0.1) for step in range(100)]
    assert lr[0] == pytest.approx(0.1) and lr[9] == lr[10] == 1 and lr[-1] == pytest.approx(0.1) and lr[54] == pytest.approx(0.55, abs=0.02)
    assert all(a >= b for a, b in zip(lr[10:], lr[11:]))
    lr = [optim.wsd(step, 100, 10, 0.0, 0.2) for step in range(100)]
    assert set(lr[10:80]) == {1.0} and lr[-1] == 0 and 0 < lr[90] < 1
    assert [optim.constant(step, 100, 4) for step in (0, 3, 50)] == [0.25, 1, 1]
    for schedule in optim.SCHEDULES.values():
        assert all(0 <= schedule(step, 3, 1) <= 1 for step in range(9))  # longer than planned


def test_wrong_options_are_named():
    p = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ArgumentError, match="AdamW: master is 'bf16'"):
        optim.AdamW([p], master="bf16")
    with pytest.raises(ArgumentError, match="AdamW: moment_dtype is torch.float16"):
        optim.AdamW([p], moment_dtype=torch.float16)
    with pytest.raises(ArgumentError, match="adamw: weight is not contiguous"):
        t = torch.zeros(4, 4).t()
        optim.adamw_kernel(t, t, t, t, None, None, False, 0, **NUMBERS, corrections=torch.ones(2))
