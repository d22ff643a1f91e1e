"""v6 of linear_cross_entropy: exponentials out of the logits' matmul. Where they lie, what is ignored, and shifts that are too low."""

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.cuda.variants import kernel
from labkernels.loss import fused, linear_cross_entropy, reference
from labkernels.loss import linear_cross_entropy_variants as linear
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(tokens, hidden, vocab, device="cpu", magnitude=1.0):
    generator = torch.Generator().manual_seed(0)
    x = magnitude * torch.randn((tokens, hidden), generator=generator)
    weight = torch.randn((vocab, hidden), generator=generator) / hidden**0.5
    target = torch.randint(0, vocab, (tokens,), generator=generator)
    target[::5] = -100
    target[1:4] = target[3]  # one token of the vocabulary has several targets
    return x.to(device, BF16), weight.to(device, BF16), target.to(device)


def wanted(x, weight, target, scale):
    leaves = x.double().requires_grad_(), weight.double().requires_grad_()
    losses = reference.losses_of(leaves[0] @ leaves[1].t(), target)
    return losses.detach(), *torch.autograd.grad((losses * scale.double()).sum(), leaves)


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "tokens, hidden, vocab, chunk, scratch",
    [
        (70, 64, 1000, 32, 32 * 300),  # columns in both places; the last chunk is smaller, and so is the last tile
        (40, 64, 304, 40, 40 * 304),  # nothing is borrowed
        (33, 264, 768, 33, 33 * 8),  # nearly all of it is
    ],
)
def test_losses_and_gradients_are_those_of_float32_logits(tokens, hidden, vocab, chunk, scratch, device):
    x, weight, target = problem(tokens, hidden, vocab, device)
    for scale in (torch.tensor([0.125], device=device), torch.linspace(-1, 1, tokens, device=device)):
        got = fused.in_fused_chunks(x, weight, target, scale, layout=fused.Layout.of(tokens, hidden, vocab, chunk, scratch))
        want = wanted(x, weight, target, scale)
        assert relative(got[0], want[0]) < 1e-6
        assert all(relative(one, other) < 2.5e-3 for one, other in zip(got[1:], want[1:]))
        assert got[0][::5].eq(0).all() and got[1][::5].eq(0).all()  # ignored


@pytest.mark.parametrize("tiling", [(256, 0), (256, 2), (192, 0), (128, 0)])
def test_tiles_of_every_kind(tiling, monkeypatch):
    monkeypatch.setattr(fused, "TILING", dict.fromkeys(fused.TILING, tiling))
    for tokens, hidden, vocab in ((200, 64, 1000), (130, 896, 520)):  # more tiles than blocks; and more stages of a tile than there are, twice
        x, weight, target = problem(tokens, hidden, vocab)
        want = wanted(x, weight, target, torch.ones(1))
        got = fused.in_fused_chunks(x, weight, target, torch.ones(1), layout=fused.Layout.of(tokens, hidden, vocab, 130, 130 * 480))
        assert relative(got[0], want[0]) < 1e-6 and all(relative(one, other) < 2.5e-3 for one, other in zip(got[1:], want[1:]))


def test_a_loss_too_large_for_its_shift_is_worked_out_again():
    x, weight, target = problem(24, 64, 904, magnitude=80.0)
    scale, layout = torch.tensor([0.125]), fused.Layout.of(24, 64, 904, 24, 24 * 200)
    want = wanted(x, weight, target, scale)
    assert want[0].max() > 150  # e^150 is no float32
    got = fused.in_fused_chunks(x, weight, target, scale, layout=layout)
    assert relative(got[0], want[0]) < 1e-6 and all(relative(one, other) < 3e-3 for one, other in zip(got[1:], want[1:]))


def test_without_the_second_launch_such_a_loss_would_be_wrong(monkeypatch):
    x, weight, target = problem(24, 64, 904, magnitude=80.0)
    once = lambda *args: lambda *launch: None if launch[2][-1] == 1 else kernel(*args)(*launch)
    monkeypatch.setattr(fused, "kernel", lambda path, name, *rest: (once if name == "exponentials" else kernel)(path, name, *rest))
    assert not fused.in_fused_chunks(x, weight, target, torch.ones(1))[0].isfinite().all()


def test_a_target_that_is_no_token_makes_nan():
    x, weight, target = problem(16, 64, 256)
    target[7] = 256
    losses, dx, _ = fused.in_fused_chunks(x, weight, target, torch.ones(1))
    assert losses.isnan().nonzero().flatten().tolist() == [7] and dx.isnan().any(1).nonzero().flatten().tolist() == [7]


def test_is_clean():
    x, weight, target = problem(20, 64, 272)
    with sanitizing():
        linear.v6_exponentials(x, weight, target)


def test_layouts_fit_and_full_tiles_are_borrowed():
    for tokens, hidden, vocab in ((8192, 2048, 128_256), (100, 4096, 32_000), (65_536, 256, 8_000), (5, 16, 40), (9, 64, 128_256)):
        layout = fused.Layout.of(tokens, hidden, vocab)
        assert layout.chunk * layout.borrowed <= (vocab - layout.at_once) * hidden and layout.borrowed % fused.COLUMNS == 0
        assert layout.chunk * (vocab - layout.borrowed) <= layout.scratch and tokens * min(layout.block, vocab - layout.at_once) <= layout.scratch
        assert layout.at_once % 8 == 0 and layout.block % 8 == 0 and (layout.borrowed or layout.at_once == vocab)
    large = fused.Layout.of(8192, 2048, 128_256)
    beside = 2 * large.scratch + 4 * 501 * large.chunk + (2 + 4) * large.chunk * 2048
    assert 2 * (128_256 + 8192) * 2048 + beside < 0.624e9, "more than Liger takes"


def test_compiles_for_hopper_without_spills():
    for name, file, *flags in (("exponentials",) * 2, ("probabilities", "exponentials"), ("add_to_dweight", "gradients", "true"), ("add_to_dx", "gradients")):
        resources = taken(kernel(fused.FOLDER / f"{file}.cu", name, BF16, *flags, *fused.TILING[name]), "sm_90a")
        assert resources.spill_stores == resources.stack == 0, resources


@pytest.mark.parametrize("options, words", [({"label_smoothing": 0.1}, "label_smoothing"), ({"z_loss": 0.1}, "z_loss")])
def test_options_go_elsewhere(options, words):
    assert words in fused.accepts(*problem(16, 64, 256), **options)
    assert "bfloat16" in fused.accepts(*(each.float() if each.is_floating_point() else each for each in problem(16, 64, 256)))


@pytest.mark.gpu
def test_memory_is_the_gradients_and_a_tenth_of_the_weight():
    from labkernels.lab.measure import peak_memory

    x, weight, target = problem(4096, 1024, 64_000, "cuda")
    linear.v6_exponentials(x, weight, target)
    peak, _ = peak_memory(lambda: linear.v6_exponentials(x, weight, target))
    assert peak < 2 * (x.numel() + weight.numel() * 1.1) + 2**23


@pytest.mark.gpu
@pytest.mark.parametrize("chunk_tokens", [None, 0])
def test_many_logits_go_this_way_and_gradients_are_closer_to_those_of_float32_logits(chunk_tokens):
    x, weight, target = problem(4096, 2048, 65_536, "cuda", magnitude=3.0)
    x.requires_grad_()
    weight.requires_grad_()
    got = torch.autograd.grad(linear_cross_entropy(x, weight, target, chunk_tokens=chunk_tokens), (x, weight))
    rounded = torch.autograd.grad(linear_cross_entropy(x, weight, target, chunk_tokens=1024), (x, weight))
    leaves = x.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    want = torch.autograd.grad(torch.nn.functional.cross_entropy(leaves[0] @ leaves[1].t(), target), leaves)
    for one, other, exact in zip(got, rounded, want):
        assert relative(one, exact) < 2.5e-3 < relative(other, exact)
