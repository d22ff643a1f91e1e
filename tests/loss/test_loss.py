"""Losses: PyTorch's values and gradients, whatever the options, in whatever chunks; and what keeps a training loop safe."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import labkernels.torch_extension  # noqa: F401  defines the operators
from labkernels.cuda import sanitizing
from labkernels.cuda.variants import kernel
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.loss import cross_entropy, linear_cross_entropy, reference
from labkernels.loss import cross_entropy_variants as kernels
from labkernels.loss import linear_cross_entropy_variants as linear
from labkernels.loss.products import by_hopper, logits_into
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
OPTIONS = [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}, {"ignore_index": 7}]


def normal(*shape, device="cpu", dtype=torch.float32, scale=1.0, seed=0):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(device, dtype)


def targets(*shape, vocab, device="cpu", ignore_index=-100):
    target = torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(1))
    target.view(-1)[::4] = ignore_index
    return target.to(device)


@pytest.mark.parametrize("name", kernels.VARIANTS)
def test_cross_entropy_passes_the_check(name):
    assert check("cross_entropy", name, seeds=(0,), quiet=True).sanitizer == "clean"


@pytest.mark.parametrize("name", linear.VARIANTS)
def test_linear_cross_entropy_passes_the_check(name):
    assert check("linear_cross_entropy", name, seeds=(0,), quiet=True).sanitizer == "clean"


def test_the_reference_is_pytorchs():
    logits, target = normal(9, 40).double(), targets(9, vocab=40)
    losses, gradient = reference.cross_entropy(logits, target, label_smoothing=0.1)
    leaf = logits.clone().requires_grad_()
    want = F.cross_entropy(leaf, target, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(losses, want.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(want.sum(), leaf)[0])
    probabilities = logits.softmax(-1)
    lse = logits.logsumexp(-1, keepdim=True)
    slope = probabilities * (1 + 2 * 0.01 * lse) - F.one_hot(target.clamp(min=0), 40)
    torch.testing.assert_close(reference.cross_entropy(logits, target, z_loss=0.01)[1], slope * (target != -100)[:, None])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("blocks", [1, 4])
def test_v3_in_several_blocks_and_in_place(blocks, device):
    logits, target = normal(3, 700, scale=3.0, device=device), targets(3, vocab=700, device=device)
    want = reference.cross_entropy(logits.double(), target, 0.5, label_smoothing=0.1)
    place = logits.clone()
    losses, gradient = kernels.configured(blocks, place, target, 0.5, label_smoothing=0.1, out=place)
    assert gradient is place
    torch.testing.assert_close(losses.double(), want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), want[1], rtol=1e-4, atol=1e-8)


def test_v3_in_several_blocks_is_clean():
    logits, target = normal(2, 200), targets(2, vocab=200)
    with sanitizing():
        for scale in (0.5, torch.tensor([0.5, 0.25])):
            kernels.configured(2, logits, target, scale, label_smoothing=0.1, z_loss=0.1)
        kernels.scale_in_place(logits, torch.tensor([3.0]))
    torch.testing.assert_close(logits, 3 * normal(2, 200))


@pytest.mark.parametrize("fn", [variant.fn for variant in kernels.VARIANTS.values()], ids=list(kernels.VARIANTS))
def test_a_target_that_is_no_token_makes_its_row_nan_and_no_other(fn):
    logits, target = normal(3, 50), torch.tensor([3, 50, -1])
    losses, gradient = fn(logits, target)
    assert losses.isnan().tolist() == [False, True, True] and gradient.isnan().any(1).tolist() == [False, True, True]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_linear_cross_entropy_and_gradients(reduction, options, device):
    x, weight = normal(3, 7, 16, device=device).requires_grad_(), normal(40, 16, scale=0.3, device=device, seed=2).requires_grad_()
    target = targets(3, 7, vocab=40, device=device, ignore_index=options.get("ignore_index", -100))
    loss = linear_cross_entropy(x, weight, target, **options, reduction=reduction, chunk_tokens=8)
    upstream = normal(*loss.shape, device=device)
    got = torch.autograd.grad(loss, (x, weight), upstream)
    given = {"ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0, **options}
    doubles = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    losses = reference.losses_of((doubles[0] @ doubles[1].t()).view(21, 40), target.view(-1), *given.values())
    want = reference.reduced(losses, target.view(-1), given["ignore_index"], reduction)
    want = want.view(3, 7) if reduction == "none" else want
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
    for one, other in zip(got, torch.autograd.grad(want, doubles, upstream.double())):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_and_gradient(reduction):
    logits, target = normal(10, 33).t().contiguous().t().requires_grad_(), targets(10, vocab=33)
    loss = cross_entropy(logits, target, label_smoothing=0.1, reduction=reduction)
    want = F.cross_entropy(logits, target, label_smoothing=0.1, reduction=reduction)
    upstream = normal(*loss.shape)
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(each, logits, upstream)[0] for each in (loss, want)), rtol=1e-4, atol=1e-6)


def test_only_wanted_gradients_are_made_and_without_any_none_is():
    x, weight, target = normal(9, 8), normal(30, 8), targets(9, vocab=30)
    _, dx, dweight, _ = torch.ops.labkernels.linear_cross_entropy(x, weight, target, with_dx=True)
    assert dx.shape == x.shape and not dweight.numel()
    plain = linear_cross_entropy(x, weight, target)
    torch.testing.assert_close(plain, F.cross_entropy(x @ weight.t(), target), rtol=1e-5, atol=1e-6)
    assert not plain.requires_grad


def test_gradients_made_in_place_are_not_given_twice():
    x, weight, target = normal(9, 8).requires_grad_(), normal(30, 8), targets(9, vocab=30)
    loss = linear_cross_entropy(x, weight, target)
    (3 * loss).backward(retain_graph=True)
    want = torch.autograd.grad(3 * F.cross_entropy(x @ weight.t(), target), x)[0]
    torch.testing.assert_close(x.grad, want, rtol=1e-4, atol=1e-6)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (3 * loss).backward()


def test_small_gradients_survive_float16():
    x, weight, target = normal(40, 8, dtype=torch.float16), normal(600, 8, dtype=torch.float16), targets(40, vocab=600)
    x.requires_grad_()
    weight.requires_grad_()
    (2**14 * linear_cross_entropy(x, weight, target)).backward()  # as a loss scaler does
    doubles = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    (2**14 * F.cross_entropy(doubles[0] @ doubles[1].t(), target)).backward()
    for got, want in zip((x.grad, weight.grad), (double.grad for double in doubles)):
        assert (got.double() - want).norm() < 3e-3 * want.norm()


def test_more_tokens_a_chunk_give_the_same_and_memory_is_that_of_a_chunk():
    x, weight, target = normal(50, 16), normal(70, 16), targets(50, vocab=70)
    whole = linear.v3_chunked(x, weight, target, chunk_tokens=50)
    for chunk in (1, 8, 17):
        for got, want in zip(linear.v3_chunked(x, weight, target, chunk_tokens=chunk), whole):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert linear.default_chunk(8192, 2048) == 1024 and linear.default_chunk(8192, 2048, share=4) == 512 and linear.default_chunk(100, 2048) == 104
    assert linear.default_chunk(8192, 2048, bytes_of_token=2 * 32_000) == 2048 and linear.default_chunk(8192, 2048, bytes_of_token=2 * 128_256) == 1024


def test_nothing_that_counts():
    x, weight = normal(4, 8).requires_grad_(), normal(30, 8).requires_grad_()
    loss = linear_cross_entropy(x, weight, torch.full((4,), -100), reduction="sum")
    loss.backward()
    assert loss == 0 and x.grad.eq(0).all() and weight.grad.eq(0).all()
    assert linear_cross_entropy(x, weight, torch.full((4,), -100)).isnan()  # 0 / 0, as PyTorch's
    empty = linear_cross_entropy(x[:0], weight, torch.empty(0, dtype=torch.int64), reduction="sum")
    assert empty == 0 and torch.autograd.grad(empty, weight)[0].eq(0).all()


def test_classic_mistakes_fail():
    def without_ignore_index(logits, target, scale=1.0, ignore_index=-100, **options):
        return kernels.v2_online(logits, target.clamp(min=0), scale, ignore_index=-5, **options)

    def gradient_of_the_mean(x, weight, target, reduction="mean", **options):
        loss, dx, dweight = linear.v3_chunked(x, weight, target, reduction=reduction, **options)
        return loss, dx * len(x), dweight * len(x)

    for op, mistake in (("cross_entropy", without_ignore_index), ("linear_cross_entropy", gradient_of_the_mean)):
        with pytest.raises(CheckFailed) as failure:
            check(op, mistake, dtypes=["float32"], seeds=(0,), quiet=True)
        assert failure.value.reason == "mismatch"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": torch.zeros(5, 8).double()}, "x is float64; it must be float32, bfloat16, float16"),
        ({"weight": torch.zeros(30, 9)}, r"weight has shape \(30, 9\); it must be \(vocab, hidden = 8\)"),
        ({"weight": torch.zeros(30, 8).half()}, "weight is float16, x is float32; both must be of one dtype"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, r"target has shape \(4,\); beside x \(5, 8\) it must be \(5,\)"),
        ({"target": torch.zeros(5, dtype=torch.int32)}, "target is int32; it must be int64"),
        ({"label_smoothing": 2.0}, "label_smoothing is 2.0; it must be from 0 to 1"),
        ({"reduction": "max"}, "reduction is 'max'; it must be mean, sum, none"),
        ({"chunk_tokens": -1}, "chunk_tokens is -1; it must be an int of at least 0"),
    ],
)
def test_wrong_inputs_are_named(change, words):
    inputs = {"x": torch.zeros(5, 8), "weight": torch.zeros(30, 8), "target": torch.zeros(5, dtype=torch.int64), **change}
    with pytest.raises(ArgumentError, match="linear_cross_entropy: " + words):
        linear_cross_entropy(**inputs)
    with pytest.raises(ArgumentError, match="cross_entropy: logits has shape"):
        cross_entropy(torch.zeros(3), torch.zeros(3, dtype=torch.int64))


def test_the_operators_are_whole():
    x, weight, target = normal(9, 8).requires_grad_(), normal(30, 8).requires_grad_(), targets(9, vocab=30)
    ops = torch.ops.labkernels
    opcheck(ops.cross_entropy.default, (normal(9, 30).requires_grad_(), target, -100, 0.1, 0.0, "mean", True))
    for reduction in ("mean", "none"):
        opcheck(ops.linear_cross_entropy.default, (x, weight, target, -100, 0.1, 0.0, reduction, 8, True, True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_as_one_graph(reduction):
    x, weight, target = normal(9, 8).requires_grad_(), normal(30, 8).requires_grad_(), targets(9, vocab=30)
    call = lambda x, weight, target: 2 * linear_cross_entropy(x, weight, target, reduction=reduction).sum()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for got, want in zip(*(torch.autograd.grad(fn(x, weight, target), (x, weight)) for fn in (compiled, call))):
        torch.testing.assert_close(got, want)


def test_many_tokens_have_their_logits_from_our_matmul():
    x, weight = normal(20, 64, dtype=torch.bfloat16), normal(72, 64, dtype=torch.bfloat16)
    out = torch.full((20, 72), torch.nan, dtype=torch.bfloat16)
    by_hopper(out, x, weight)
    torch.testing.assert_close(out, x @ weight.t(), rtol=2**-7, atol=1e-2)


@pytest.mark.gpu
def test_many_tokens_have_their_logits_from_our_matmul_on_a_gpu():
    x, weight = normal(1024, 256, device="cuda", dtype=torch.bfloat16), normal(4000, 256, device="cuda", dtype=torch.bfloat16)
    out = torch.full((1024, 4000), torch.nan, dtype=torch.bfloat16, device="cuda")
    logits_into(out, x, weight)
    torch.testing.assert_close(out, x @ weight.t(), rtol=2**-7, atol=5e-2)


@pytest.mark.parametrize("arch, files", [("sm_80", ("v1_naive", "v2_online")), ("sm_90a", ("v1_naive", "v2_online", "v3_cluster", "v4_registers"))])
def test_compiles_for_gpus_without_spills(arch, files):
    for file in files:
        arguments = {"v1_naive": [], "v4_registers": [8, 4]}.get(file, [8])
        resources = taken(kernel(kernels.FOLDER / f"{file}.cu", f"cross_entropy_{file[3:]}", torch.bfloat16, *arguments), arch)
        assert resources.spill_stores == resources.stack == 0, resources


def test_borrowed_memory_gives_what_chunks_give():
    for tokens, options in ((50, {}), (3, {"label_smoothing": 0.1, "z_loss": 1e-3}), (90, {"reduction": "sum", "ignore_index": 7})):
        x, weight, target = normal(tokens, 16), normal(600, 16, seed=3), targets(tokens, vocab=600, ignore_index=options.get("ignore_index", -100))
        for got, want in zip(linear.v5_borrowed(x, weight, target, **options), linear.v3_chunked(x, weight, target, **options)):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_memory_is_borrowed_where_that_is_asked_for(monkeypatch):
    x, weight, target = normal(700, 8).requires_grad_(), normal(40, 8, seed=3).requires_grad_(), targets(700, vocab=40)
    used = []
    monkeypatch.setattr(linear, "in_borrowed_memory", lambda *args, run=linear.in_borrowed_memory: (used.append(len(args[0])), run(*args))[1])
    want = torch.autograd.grad(linear_cross_entropy(x, weight, target), (x, weight))
    assert not used
    for got, other in zip(torch.autograd.grad(linear_cross_entropy(x, weight, target, chunk_tokens=0), (x, weight)), want):
        torch.testing.assert_close(got, other)
    linear_cross_entropy(x.detach(), weight, target, chunk_tokens=0)
    assert used == [700]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens, hidden, vocab, block", [(2048, 1024, 64_000, 64_000 * 1024 // 16), (4096, 256, 32_000, 4096 * linear.LEAST_BLOCK)])
def test_borrowed_memory_is_the_gradients_and_a_sixteenth_of_the_weight_or_the_least_block(tokens, hidden, vocab, block):
    from labkernels.lab.measure import peak_memory

    x, weight = normal(tokens, hidden, device="cuda", dtype=torch.bfloat16), normal(vocab, hidden, device="cuda", dtype=torch.bfloat16)
    target = targets(tokens, vocab=vocab, device="cuda")
    linear.v5_borrowed(x, weight, target)
    peak, _ = peak_memory(lambda: linear.v5_borrowed(x, weight, target))
    assert peak < 2 * (x.numel() + weight.numel() + block) + 2**19


@pytest.mark.gpu
def test_memory_is_the_gradients_and_a_chunk():
    from labkernels.lab.measure import peak_memory

    x, weight = normal(4096, 256, device="cuda", dtype=torch.bfloat16), normal(32_000, 256, device="cuda", dtype=torch.bfloat16)
    target = targets(4096, vocab=32_000, device="cuda")
    linear.v3_chunked(x, weight, target)
    peak, _ = peak_memory(lambda: linear.v3_chunked(x, weight, target))
    assert peak < 2 * (x.numel() + weight.numel() + 260 * 32_000) + 2**20
