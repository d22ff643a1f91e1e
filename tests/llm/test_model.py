"""The model: causal, grouped, documents apart; both kernel sets agree, forward and backward, and torch.compile takes the whole of it."""

import copy

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.llm import ModelConfig, Transformer
from labkernels.llm.kernels import OPERATIONS

CONFIG = ModelConfig(vocab_size=101, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=48, max_seq_len=40)
OTHERS = {
    "QK-norm, own head": {"qk_norm": True, "tie_embeddings": False},
    "GELU, heads that are not embed_dim together": {"activation": "gelu_tanh", "head_dim": 12},
    "Llama 3's scaling, one key head": {
        "num_kv_heads": 1,
        "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    },
}
LENGTHS = (5, 11, 16)  # of the documents in two rows of 16
ENDS = torch.tensor([0, 5, 16, 32, 32], dtype=torch.int32)  # padded, as a loader does


def make(kernels="torch", device=None, dtype=None, **changes):
    """A model whose weights are large enough that every part of it matters."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**CONFIG.__dict__, "head_dim": None, **changes}), kernels)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.uniform_(0.5, 1.5) if "norm" in name else weight.normal_(std=0.2)
    return model.to(device=device, dtype=dtype)


def tokens(batch=2, seq=16, seed=1, device=None):
    return torch.randint(CONFIG.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(seed)).to(device)


def step(model, *args, **options):
    model.zero_grad()
    loss = model(*args, **options)
    loss.backward()
    return loss.item(), {name.removeprefix("_orig_mod."): weight.grad.clone() for name, weight in model.named_parameters()}


def by_hand(model, row):
    """Logits of one row in float64, position by position and head by head: no product is stacked, nothing is batched."""
    c, w = model.config, {name: weight.detach().double() for name, weight in model.named_parameters()}
    norm = lambda x, name: x / (x.square().mean(-1, keepdim=True) + c.norm_eps).sqrt() * w[name]  # noqa: E731
    turn = torch.tensor([c.rope_theta ** (-2 * i / c.head_dim) for i in range(c.head_dim // 2)], dtype=torch.float64)
    stream = w["embedding.weight"][row]
    for i in range(c.num_layers):
        at, x = f"blocks.{i}.", norm(stream, f"blocks.{i}.attention_norm.weight")
        heads = (x @ w[at + "attention.qkv_proj.weight"].t()).view(len(row), -1, c.head_dim)
        turned = []
        for position, all_heads in enumerate(heads):
            first, second = all_heads.chunk(2, dim=-1)
            cos, sin = (position * turn).cos(), (position * turn).sin()
            turned.append(torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1))
        turned, out = torch.stack(turned), []
        for head in range(c.num_heads):
            group = c.num_heads + head * c.num_kv_heads // c.num_heads
            scores = turned[:, head] @ turned[:, group].t() / c.head_dim**0.5
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            out.append(scores.softmax(-1) @ heads[:, group + c.num_kv_heads])
        stream = stream + torch.cat(out, dim=-1) @ w[at + "attention.out_proj.weight"].t()
        gate, up = (norm(stream, at + "ffn_norm.weight") @ w[at + "ffn.gate_up_proj.weight"].t()).chunk(2, dim=-1)
        stream = stream + (gate * gate.sigmoid() * up) @ w[at + "ffn.down_proj.weight"].t()
    return norm(stream, "norm.weight") @ w["embedding.weight"].t()


@pytest.mark.parametrize("kernels", ["torch", "labkernels"])
def test_logits_are_those_of_the_formula(kernels):
    model = make(kernels)
    with torch.no_grad():
        got = model(tokens())[0]
    torch.testing.assert_close(got.double(), by_hand(model, tokens()[0]), atol=2e-4, rtol=1e-4)


def test_targets_give_the_mean_loss_of_those_that_count():
    model, target = make(), tokens(seed=2)
    target[0, 3:] = -100
    logits = model(tokens())[target != -100]
    want = -logits.log_softmax(-1).gather(1, target[target != -100][:, None]).mean()
    for kernels in ("torch", "labkernels"):
        model.kernels = {"loss": kernels}
        assert model(tokens(), target).item() == pytest.approx(want.item(), rel=1e-5)
        assert model(tokens(), target).dtype == torch.float32


def test_no_logit_depends_on_what_comes_later():
    model, other = make(), tokens()
    other[:, 9:] = tokens(seed=3)[:, 9:]
    with torch.no_grad():
        first, second = model(tokens()), model(other)
    torch.testing.assert_close(first[:, :9], second[:, :9])
    assert (first[:, 9:] - second[:, 9:]).abs().max() > 0.1


@pytest.mark.parametrize("kernels", ["torch", "labkernels"])
def test_documents_that_are_packed_are_as_if_alone(kernels):
    model = make(kernels)
    rows = tokens()
    documents = [rows[0, :5], rows[0, 5:], rows[1]]
    with torch.no_grad():
        packed = model(rows, cu_seqlens=ENDS).flatten(0, 1).split(LENGTHS)
        for document, got in zip(documents, packed):
            torch.testing.assert_close(got, model(document[None])[0], atol=1e-4, rtol=1e-4)
        assert (model(rows)[0, 5:] - packed[1]).abs().max() > 0.1  # not packed they would see each other


def test_positions_can_be_given():
    model, rows = make(), tokens()
    with torch.no_grad():
        torch.testing.assert_close(model(rows, positions=torch.arange(16)), model(rows))
        torch.testing.assert_close(model(rows, positions=torch.arange(16).expand(2, 16) + 7), model(rows), atol=1e-4, rtol=1e-4)
        assert (model(rows, positions=2 * torch.arange(16)) - model(rows)).abs().max() > 0.1


@pytest.mark.parametrize("operation", [*OPERATIONS, "all of them"])
@pytest.mark.parametrize("packed", [False, True])
def test_both_kernel_sets_agree_forward_and_backward(operation, packed):
    """The kernels run in the emulator here: every operation of the model is quick enough in it at this size."""
    model, options = make(), {"cu_seqlens": ENDS} if packed else {}
    want, gradients = step(model, tokens(), tokens(seed=2), **options)
    model.kernels = "labkernels" if operation == "all of them" else {operation: "labkernels"}
    got, ours = step(model, tokens(), tokens(seed=2), **options)
    assert got == pytest.approx(want, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", OTHERS)
def test_both_kernel_sets_agree_on_other_shapes(name):
    model = make(**OTHERS[name])
    want, gradients = step(model, tokens(), tokens(seed=2))
    model.kernels = "labkernels"
    got, ours = step(model, tokens(), tokens(seed=2))
    assert got == pytest.approx(want, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-3)


def test_a_weight_that_differs_is_noticed():
    """The comparison above can fail: one row of one weight, a thousandth larger."""
    model = make()
    _, gradients = step(model, tokens(), tokens(seed=2))
    with torch.no_grad():
        model.blocks[1].attention.qkv_proj.weight[0] *= 1.01
    _, others = step(model, tokens(), tokens(seed=2))
    with pytest.raises(AssertionError):
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kernels, checkpointing", [("labkernels", "none"), ("torch", "full"), ("labkernels", "selective")])
def test_compiled_and_checkpointed_it_is_the_same(kernels, checkpointing):
    """In one graph. Inductor itself compiles the GPU's, in the tests for it: here it would take minutes of a C++ compiler."""
    model = make(kernels)
    want, gradients = step(model, tokens(), tokens(seed=2), cu_seqlens=ENDS)
    model.checkpointing = checkpointing
    torch._dynamo.reset()
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        got, ours = step(run, tokens(), tokens(seed=2), cu_seqlens=ENDS)
        assert got == pytest.approx(want, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-5)


def test_a_layer_in_the_place_of_a_linear_one_multiplies_in_its_own_way():
    class Half(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    with torch.no_grad():
        for names in (("attention", "qkv_proj"), ("ffn", "down_proj")):
            model = make()
            want = model(tokens())
            part = getattr(model.blocks[0], names[0])
            half = Half(*getattr(part, names[1]).weight.shape[::-1], bias=False)
            half.weight = torch.nn.Parameter(2 * getattr(part, names[1]).weight)
            setattr(part, names[1], half)
            for kernels in ("torch", "labkernels"):
                model.kernels = kernels
                torch.testing.assert_close(model(tokens()), want, atol=1e-4, rtol=1e-4)


def test_it_survives_casts_copies_and_meta():
    model = make()
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half.angles.dtype == torch.float32 and torch.equal(half.angles, model.angles)
    with torch.device("meta"):
        empty = Transformer(model.config)
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(filled(tokens()), model(tokens()))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}  # tables are not saved


def test_bfloat16_is_near_float32():
    model = make()
    with torch.no_grad():
        want = model(tokens())
        for kernels in ("torch", "labkernels"):
            got = make(kernels, dtype=torch.bfloat16)(tokens())
            assert got.dtype == torch.bfloat16 and (got.float() - want).abs().mean() < 0.02 * want.abs().mean()


@pytest.mark.parametrize("kernels", ["torch", "labkernels"])
def test_under_autocast_weights_stay_float32_and_products_are_not(kernels):
    model = make(kernels)
    want, gradients = step(model, tokens(), tokens(seed=2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens(), tokens(seed=2))
    model.zero_grad()
    loss.backward()
    assert loss.item() == pytest.approx(want, rel=0.01) and loss.item() != want
    for name, weight in model.named_parameters():
        assert weight.grad.dtype == torch.float32 and (weight.grad - gradients[name]).norm() < 0.05 * gradients[name].norm(), name


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: Transformer(CONFIG, "cuda"), "kernels\\['embedding'\\] is 'cuda'; it must be one of 'torch', 'labkernels'"),
        (lambda: Transformer(CONFIG, {"norms": "torch"}), "kernels has 'norms'; the operations are 'embedding', 'norm'"),
        (lambda: Transformer({"vocab_size": 3}), "config is a dict; it must be a ModelConfig"),
        (lambda: make()(tokens()[0]), r"tokens has shape \(16,\); it must be \(batch, seq\)"),
        (lambda: make()(tokens().float()), "tokens is float32; it must be int64"),
        (lambda: make()(tokens(seq=41)), "tokens has 41 a row; max_seq_len is 40"),
        (lambda: make()(tokens(), tokens(seq=15)), r"targets has shape \(2, 15\); it must be tokens' \(2, 16\)"),
        (lambda: make()(tokens(), cu_seqlens=ENDS.long()), "cu_seqlens is int64"),
        (lambda: setattr(make(), "checkpointing", "some"), "checkpointing is 'some'; it must be one of 'none', 'selective', 'full'"),
    ],
)
def test_bad_arguments_are_named(wrong, message):
    with pytest.raises(ArgumentError, match=message):
        wrong()


REAL = {"vocab_size": 32_768, "embed_dim": 1536, "num_heads": 24, "num_kv_heads": 6, "ffn_dim": 4096, "max_seq_len": 2048}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("packed", [False, True])
def test_on_a_gpu_both_agree_at_real_size_compiled_or_not(dtype, packed):
    torch.backends.cuda.matmul.allow_tf32 = False
    options = {}
    if packed:
        options["cu_seqlens"] = torch.tensor([0, 300, 2048, 2049, 3500, 4096, 4096], dtype=torch.int32, device="cuda")
    config = ModelConfig(**REAL, num_layers=2)
    torch.manual_seed(0)
    model = Transformer(config, device="cuda", dtype=dtype)
    given = [torch.randint(config.vocab_size, (2, 2048), device="cuda") for _ in range(2)]
    exact = copy.deepcopy(model).float()
    want, truth = step(exact, *given, **options)
    _, theirs = step(model, *given, **options)
    away = lambda found, name: (found[name].float() - truth[name]).norm() / truth[name].norm()  # noqa: E731
    for kernels in ("torch", "labkernels"):
        model.kernels = kernels
        torch._dynamo.reset()
        for run in (model, torch.compile(model, fullgraph=True)):
            got, ours = step(run, *given, **options)
            assert got == pytest.approx(want, rel=2e-3 if dtype == torch.bfloat16 else 1e-5)
            for name in truth:
                assert away(ours, name) < max(2 * away(theirs, name), 2e-4), f"{kernels} {name}: {away(ours, name):.2g}, {away(theirs, name):.2g}"


def test_a_model_becomes_real_block_by_block_with_the_weights_that_it_would_have():
    config = ModelConfig(vocab_size=64, embed_dim=32, num_layers=3, num_heads=2, num_kv_heads=1, ffn_dim=48, tie_embeddings=False)
    with torch.device("meta"):
        model, seen = Transformer(config), []
    torch.manual_seed(3)
    model.make_real("cpu", lambda name, block: seen.append((name, [each.ffn_norm.weight.is_meta for each in model.blocks])))
    assert seen == [("blocks.0", [False, True, True]), ("blocks.1", [False, False, True]), ("blocks.2", [False, False, False])]
    other = Transformer(config)
    torch.manual_seed(3)
    other.reset_parameters()
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(model.angles, other.angles)
    model.make_real("cpu", lambda name, block: seen.append(name))
    assert seen[3:] == ["blocks.0", "blocks.1", "blocks.2"] and torch.equal(model.norm.weight, other.norm.weight), "of a real model nothing is made anew"
