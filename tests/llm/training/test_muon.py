"""Muon: what Newton-Schulz makes of a matrix, by our symmetric matmul and without, and one step of the optimiser."""

import math

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.llm.config import ModelConfig
from labkernels.llm.model import Transformer
from labkernels.llm.training.muon import Muon, muon_groups, newton_schulz

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (3, 16, 64)])
def test_singular_values_come_near_1_and_vectors_stay(shape):
    torch.manual_seed(0)
    g = torch.randn(shape)
    result = newton_schulz(g, kernel="torch")
    values = torch.linalg.svdvals(result)
    assert result.shape == g.shape and values.min() > 0.6 and values.max() < 1.25
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    assert torch.linalg.matrix_norm(result - u @ v).max() < 0.35 * math.sqrt(min(shape[-2:]))
    assert torch.linalg.svdvals(newton_schulz(g, steps=1, kernel="torch")).min() < 0.6  # one step is not enough


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(40, 72), (2, 24, 56), (72, 40)])
def test_our_symmetric_matmul_gives_the_same(shape, device):
    torch.manual_seed(1)
    g = torch.randn(shape).to(device, torch.bfloat16)
    ours, theirs = newton_schulz(g, kernel="labkernels"), newton_schulz(g, kernel="torch")
    assert ours.any() and ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)


def test_a_step_moves_each_stacked_matrix_by_its_own_orthogonal_factor():
    torch.manual_seed(2)
    start, grad = torch.randn(48, 32), torch.randn(48, 32)
    p = torch.nn.Parameter(start.clone())
    optimizer = Muon([{"params": [p], "rows": (32, 8, 8)}], lr=0.1, weight_decay=0.5)
    p.grad = grad.clone()
    optimizer.step()
    nesterov = 0.05 * grad * 0.95 + grad * 0.05  # momentum 0.05 grad; and grad once more
    pieces = [newton_schulz(piece, kernel="torch") * 0.2 * math.sqrt(32) for piece in nesterov.split([32, 8, 8])]
    torch.testing.assert_close(p.detach(), start * (1 - 0.05) - 0.1 * torch.cat(pieces), rtol=1e-4, atol=1e-5)
    whole = newton_schulz(nesterov, kernel="torch") * 0.2 * math.sqrt(48)
    assert not torch.allclose(p.detach(), start * (1 - 0.05) - 0.1 * whole, atol=1e-2)  # the planted mistake: as if it were one matrix


def test_bfloat16_weights_keep_a_master_and_nan_changes_nothing():
    torch.manual_seed(3)
    p = torch.nn.Parameter(torch.randn(16, 24).bfloat16())
    optimizer = Muon([p], lr=1e-3)
    p.grad = torch.randn_like(p)
    before = p.detach().clone()
    optimizer.step(factor=torch.tensor(math.nan))
    state = optimizer.state[p]
    assert torch.equal(p, before) and torch.equal(state["master"], before.float()) and not state["momentum"].any()
    optimizer.step(factor=torch.tensor(0.5))
    assert state["master"].dtype == torch.float32 and torch.equal(p, state["master"].bfloat16()) and not torch.equal(state["master"], before.float())
    again = Muon([p])
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[p]["master"], state["master"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_factor_is_a_smaller_gradient_and_one_that_is_not_finite_leaves_every_bit(dtype):
    torch.manual_seed(4)
    start, grads = torch.randn(16, 24).to(dtype), [torch.randn(16, 24).to(dtype) for _ in range(3)]
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    with_factor, plain = Muon([ours], lr=0.1), Muon([theirs], lr=0.1)
    for grad in grads:
        ours.grad, theirs.grad = grad.clone(), grad * 0.5
        with_factor.step(factor=torch.tensor(0.5))
        plain.step()
        assert torch.equal(theirs.grad, grad * 0.5)  # as it was
    torch.testing.assert_close(ours, theirs, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-6)
    before = [ours.detach().clone(), *(value.clone() for value in with_factor.state[ours].values())]
    ours.grad = torch.full_like(ours, math.inf)
    with_factor.step(factor=torch.tensor(math.nan))
    assert all(torch.equal(a, b) for a, b in zip([ours, *with_factor.state[ours].values()], before))


def test_a_step_never_asks_the_device_what_the_numbers_are():
    p = torch.nn.Parameter(torch.empty(16, 24, dtype=torch.bfloat16, device="meta"))  # has none: whoever asks, waits on a GPU, and fails here
    p.grad = torch.empty_like(p)
    Muon([p], lr=0.1).step(factor=torch.empty((), device="meta"))
    with pytest.raises(RuntimeError):
        bool(torch.empty((), device="meta").isfinite())  # the planted mistake


def test_the_groups_of_a_model_are_the_matrices_of_its_blocks():
    model = Transformer(ModelConfig(vocab_size=64, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=40))
    groups = {group["rows"]: group["params"] for group in muon_groups(model)}
    assert set(groups) == {(16, 8, 8), (40, 40), None} and [len(params) for params in groups.values()] == [2, 4, 2]
    assert sum(p.numel() for params in groups.values() for p in params) == sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)


def test_wrong_options_are_named():
    with pytest.raises(ArgumentError, match=r"a weight has shape \(3,\); it takes matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(ArgumentError, match=r"rows are \(2, 2\), a weight of the group has 3"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(3, 3))], "rows": (2, 2)}])
    with pytest.raises(ArgumentError, match="kernel is 'cuda'"):
        Muon([torch.nn.Parameter(torch.zeros(3, 3))], kernel="cuda")
