# %% [markdown]
# # 13 The transformer
# Embedding, norm, rotation, attention, feed-forward network (FFN), loss: every part of a language model has had its lab. Here they become
# one. You say what the model costs before you count it, assemble it, give it the weights of a model that `transformers` made, and then swap PyTorch's
# operations for this book's kernels, one at a time.
#
# You need labs 04, 08 and 09.

# %% tags=["parameters"] again={"seed": 7, "layers": 3}
seed = 0
layers = 2           # of the model that is loaded

# %%
%load_ext labkernels
import torch

import labkernels as lk
from labkernels.errors import LabKernelsError

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(seed)


def random(*shape):
    return torch.randn(shape, generator=generator).to(device)


# %% [markdown]
# ## A stream, and what is added to it
# A token begins as a row of the embedding. From then on there is one row of numbers for each token, the *residual stream*. A *block* reads it
# twice, and adds to it twice:

# %%
lk.draw.decoder_block()

# %% [markdown]
# The norms stand on the branches (*pre-norm*), so that the way from the loss back to the embedding meets nothing but additions. Behind the
# last block comes one more norm, then the *head*: a product with one row for each token of the vocabulary, which gives the logits. Where the
# head is the embedding's table, the two are *tied*.
#
# **Predict.** Llama 3.2 1B has 16 blocks and a stream of 2048 numbers. Attention has 32 heads of queries and 8 of keys and values, each
# of 64. The FFN is a SwiGLU of 8192. There are 128 256 tokens, the head is tied, nothing has a bias. How many parameters has one block, its two norms
# included? And the whole model, in billions (10⁹)?

# %% solution="predict-parameters"
of_block = billions = None
### BEGIN SOLUTION
projections = (32 + 2 * 8) * 64 * 2048 + 32 * 64 * 2048         # to queries, keys, values; and back
of_block = projections + 3 * 8192 * 2048 + 2 * 2048             # gate, up and down; two norms
billions = (16 * of_block + 128_256 * 2048 + 2048) / 1e9        # the embedding, the last norm
### END SOLUTION

# %% tests="predict-parameters" points=1
lk.check_prediction("transformer parameters", of_block, billions)

# %% [markdown]
# Count them. On PyTorch's device `meta` tensors have shapes and no numbers, so that any model fits:

# %%
with torch.device("meta"):
    llama = lk.llm.Transformer(lk.llm.ModelConfig.preset("llama-3.2-1b"))
print(f"{sum(weight.numel() for weight in llama.parameters()):,} parameters")

# %%
lk.draw.parameter_budget()

# %% [markdown]
# In small models the vocabulary is dear. In large ones nearly everything is blocks, and most of a block is its FFN.
#
# ## What a token costs
# A token is multiplied by each weight once: 2 FLOPs, a multiplication and an addition. The way back has two such products for each, one for
# the gradient of the input and one for the weight's: 4 more. So training costs 6 FLOPs for each parameter and token. The embedding is not
# multiplied, but its tied head is.
#
# Then there is attention. A query is multiplied by the keys that it sees, and their values are summed, 2 FLOPs a number each; with the way back 3
# times as much. On average a query sees half of the sequence.
#
# **Predict** for the model that the next lab trains, `645m`: 644.9 million parameters, tied, in 24 layers with 24 heads of 64. How many GFLOP (10⁹)
# do the products with weights take for one token of training? And at which length of the sequence does attention take as many?

# %% solution="predict-flops"
weights_gflop = break_even = None
### BEGIN SOLUTION
weights_gflop = 6 * 0.6449
per_key = 3 * (2 + 2) * 24 * 24 * 64              # FLOPs for each key that is seen: all layers, all heads
break_even = 2 * weights_gflop * 1e9 / per_key    # twice, for half of the keys are seen
### END SOLUTION

# %% tests="predict-flops" points=1
lk.check_prediction("transformer flops", weights_gflop, break_even)

# %%
from labkernels.llm.estimate import flop_table

for length in (2048, 17_500, 131_072):
    parts = flop_table(lk.llm.ModelConfig.preset("645m"), length)
    print(f"{length:>7} tokens: {sum(parts.values()) / 1e9:5.1f} GFLOP a token,", ", ".join(f"{n} {f / sum(parts.values()):.0%}" for n, f in parts.items()))

# %% [markdown]
# At 2048 tokens attention between its projections, `scores`, is a tenth of the arithmetic. Of the time it is more, for no attention kernel
# reaches a matmul's FLOP/s.
#
# ## Attention between its projections
# Three products make queries, keys and values of the same input. One product with the three weights stacked reads that input once, and is larger,
# which matmuls like. What it gives for one token lies like this:

# %%
lk.draw.stacked_projection(heads=4, kv_heads=2)

# %% [markdown]
# **Write** attention with its projections. Split what the first product gives, as (batch, heads, seq, head_dim); turn queries and keys with
# `lk.functional.rope(q, k, frequencies)`; `lk.functional.attention(q, k, v, causal=True)` does the rest; join the heads of each token again, and
# multiply by `w_out`. Weights are as `nn.Linear` has them: `x @ w.t()`.

# %% solution="attention"
def my_attention(x, w_qkv, w_out, frequencies, heads, kv_heads):
    """x (batch, seq, embed_dim), w_qkv ((heads + 2 kv_heads) head_dim, embed_dim), w_out (embed_dim, heads head_dim): x's shape."""
    batch, seq, _ = x.shape
    ### BEGIN SOLUTION
    by_head = (x @ w_qkv.t()).view(batch, seq, heads + 2 * kv_heads, -1).transpose(1, 2)
    q, k, v = by_head.split([heads, kv_heads, kv_heads], dim=1)
    q, k = lk.functional.rope(q, k, frequencies)
    out = lk.functional.attention(q, k, v, causal=True)
    return out.transpose(1, 2).reshape(batch, seq, -1) @ w_out.t()
    ### END SOLUTION


# %%
def attention_reference(x, w_qkv, w_out, frequencies, heads, kv_heads, join=True, order=(0, 1, 2), turned=3):
    """By the formula, head by head. The last three are the mistakes that are looked for."""
    seq, dim = x.shape[1], len(w_qkv) // (heads + 2 * kv_heads)
    parts = (x @ w_qkv.t()).split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
    q, k, v = (parts[i] for i in (order if heads == kv_heads else (0, *[i for i in order if i])))
    turn = torch.arange(seq, device=x.device)[:, None] * frequencies.to(x.dtype)
    cos, sin, hidden = turn.cos(), turn.sin(), torch.ones(seq, seq, device=x.device).triu(1).bool()

    def head_of(part, head, rotate):
        first, second = part[..., head * dim : (head + 1) * dim].chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin] if rotate else [first, second], -1)

    outs = []
    for head in range(heads):
        shared = head * kv_heads // heads
        scores = head_of(q, head, turned > 0) @ head_of(k, shared, turned > 1).mT * dim**-0.5
        outs.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ head_of(v, shared, turned > 3))
    joined = torch.cat(outs, -1) if join else torch.stack(outs, 1).reshape(x.shape[0], seq, -1)
    return joined @ w_out.t()


def attention_case(batch, seq, heads, kv_heads, dim=8, embed_dim=12):
    shapes = {"x": (batch, seq, embed_dim), "w_qkv": ((heads + 2 * kv_heads) * dim, embed_dim), "w_out": (embed_dim, heads * dim)}
    return shapes | {"frequencies": lk.functional.rope_frequencies(dim).to(device), "heads": heads, "kv_heads": kv_heads}


def scaled(fn, **changes):
    """Weights small enough for scores near 1."""

    def attention(x, w_qkv, w_out, frequencies, heads, kv_heads):
        return fn(x, 0.3 * w_qkv, 0.3 * w_out, frequencies, heads=heads, kv_heads=kv_heads, **changes)

    return attention


# %% tests="attention" points=3
cases = [attention_case(1, 1, 2, 1), attention_case(2, 5, 4, 2), attention_case(2, 9, 3, 3), attention_case(1, 33, 6, 2)]
mistakes = {
    "what the heads give, joined without moving them back behind the tokens": scaled(attention_reference, join=False),
    "the one with keys and values exchanged": scaled(attention_reference, order=(0, 2, 1)),
    "attention without positions: nothing is turned": scaled(attention_reference, turned=0),
    "the one in which the values are turned, too": scaled(attention_reference, turned=4),
}
lk.check_against(scaled(attention_reference), scaled(my_attention), cases, mistakes=mistakes);

# %% [markdown]
# ## The block
# What a branch makes is added to the stream, and the next thing that happens is a norm. As lab 09 has it, these two are one trip through memory:
# `lk.functional.add_rms_norm(x, residual, weight)` gives the norm of `x + residual`, and the sum. So blocks hand each other two tensors, what the
# last branch made and the stream before it, and leave their sum to the next norm.
#
# **Write** the block. `attend` and `feed` are the two branches without their norms.

# %% solution="block"
def my_block(x, residual, norm_1, norm_2, attend, feed):
    """x and residual, whose sum is the stream, to what the FFN makes and the stream before it."""
    ### BEGIN SOLUTION
    y, stream = lk.functional.add_rms_norm(x, residual, norm_1)
    y, stream = lk.functional.add_rms_norm(attend(y), stream, norm_2)
    return feed(y), stream
    ### END SOLUTION


# %%
def plain_block(x, residual, norm_1, norm_2, attend, feed, post=False, forget=False):
    def norm(row, weight):
        return row / (row.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    stream = x + residual
    branch = norm(attend(stream), norm_1) if post else attend(norm(stream, norm_1))
    second = branch if forget else stream + branch
    return norm(feed(second), norm_2) if post else feed(norm(second, norm_2)), stream if forget else second


def both(fn, **changes):
    """The two results side by side, with branches that are quick to follow: one looks at its neighbours, one squares."""
    branches = {"attend": lambda y: y + 0.5 * y.roll(1, 0), "feed": lambda y: y * y}

    def block(x, residual, norm_1, norm_2):
        return torch.cat(fn(x, residual, norm_1, norm_2, **branches, **changes), -1)

    return block


# %% tests="block" points=2
cases = [{"x": (rows, cols), "residual": (rows, cols), "norm_1": (cols,), "norm_2": (cols,)} for rows, cols in [(1, 8), (5, 33), (3, 128)]]
mistakes = {
    "post-norm: the norms stand behind the branches": both(plain_block, post=True),
    "a block whose attention is not in the stream that the FFN reads": both(plain_block, forget=True),
}
lk.check_against(both(plain_block), both(my_block), cases, mistakes=mistakes);

# %% [markdown]
# That is the whole architecture. `labkernels/llm/model.py` says the same in 250 lines, with everything that a checkpoint may ask for; from here on
# you use that.
#
# ## Many documents in one row
# A model trains on rows of equal length, and documents are of any. To pad a short one would waste most of its row. So documents are *packed*, one
# behind the other. Then three things must be right: a query sees keys of its own document alone, positions begin again, and no token is asked for
# the first one of the next document.

# %%
lk.draw.packed_documents([3, 5, 4])

# %% [markdown]
# The mask needs no matrix: the kernels take `cu_seqlens`, where each document begins, and at last where the row ends: 0, 3, 8, 12 above.
#
# **Write** the other two. The target of a token is the token behind it, or -100, which the loss leaves out, where that belongs to another document.

# %% solution="documents"
def positions_and_targets(tokens, cu_seqlens):
    """tokens (total,) int64 and cu_seqlens, a list that rises from 0 to total: positions and targets, both (total,) int64."""
    ### BEGIN SOLUTION
    positions = torch.cat([torch.arange(end - begin) for begin, end in zip(cu_seqlens, cu_seqlens[1:])])
    targets = torch.full_like(tokens, -100)
    targets[:-1] = tokens[1:]
    targets[torch.tensor(cu_seqlens[1:]) - 1] = -100
    return positions, targets
    ### END SOLUTION


# %% tests="documents" points=2
for ends in ([0, 12], [0, 3, 8, 12], [0, 1, 2, 12], [0, 11, 12]):
    tokens = torch.randint(5, 90, (12,), generator=torch.Generator().manual_seed(len(ends)))
    positions, targets = positions_and_targets(tokens.clone(), ends)
    for begin, end in zip(ends, ends[1:]):
        for token in range(begin, end):
            where = f"documents begin at {ends[:-1]}, token {token}"
            assert positions[token] == token - begin, f"{where}: its position is {positions[token]}, want {token - begin}"
            want = tokens[token + 1] if token + 1 < end else -100
            assert targets[token] == want, f"{where}: its target is {targets[token]}, want {want}"

# %% [markdown]
# Is it worth the trouble? The loss of packed documents must be the mean over those documents alone:

# %%
torch.manual_seed(seed)
config = lk.llm.ModelConfig(vocab_size=90, embed_dim=48, num_layers=layers, num_heads=6, num_kv_heads=2, ffn_dim=96, max_seq_len=64)
model = lk.llm.Transformer(config, device=device)
tokens, ends = torch.randint(90, (12,), generator=generator), [0, 3, 8, 12]
positions, targets = (each.to(device)[None] for each in positions_and_targets(tokens, ends))
row = tokens.to(device)[None]
with torch.no_grad():
    packed = model(row, targets, cu_seqlens=torch.tensor(ends, dtype=torch.int32, device=device), positions=positions)
    alone = sum(model(row[:, a:b], targets[:, a:b]) * (b - a - 1) for a, b in zip(ends, ends[1:])) / (12 - 3)
    blind = model(row, targets)
print(f"packed {packed:.5f}   alone {alone:.5f}   without cu_seqlens {blind:.5f}")

# %% [markdown]
# ## Somebody else's weights
# `transformers` keeps the same model under other names, with a weight for each projection. Here is one with random weights; what follows works as
# well with Llama 3.2 1B, if you have it.

# %%
import tempfile
import warnings

warnings.simplefilter("ignore")
from transformers import LlamaConfig, LlamaForCausalLM, logging

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.manual_seed(seed)
theirs = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=90, hidden_size=48, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=6, num_key_value_heads=2,
        initializer_range=0.3, tie_word_embeddings=True, rms_norm_eps=1e-5, max_position_embeddings=64,
    )
).eval()
for name, weight in theirs.model.layers[0].named_parameters():
    print(f"{name:<34}", tuple(weight.shape))

# %% [markdown]
# **Write** the translation of one layer. Its names here are those of `model.blocks[0]`:

# %%
for name, weight in model.blocks[0].named_parameters():
    print(f"{name:<26}", tuple(weight.shape))

# %% [markdown]
# The rows of `qkv_proj` are those of the queries, the keys and the values, one behind the other; `gate_up_proj` has all gates, then all ups.

# %% solution="translate"
def translated(layer):
    """Their layer, a dictionary of weights by name, as one of ours."""
    ### BEGIN SOLUTION
    return {
        "attention_norm.weight": layer["input_layernorm.weight"],
        "attention.qkv_proj.weight": torch.cat([layer[f"self_attn.{each}_proj.weight"] for each in "qkv"]),
        "attention.out_proj.weight": layer["self_attn.o_proj.weight"],
        "ffn_norm.weight": layer["post_attention_layernorm.weight"],
        "ffn.gate_up_proj.weight": torch.cat([layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"]]),
        "ffn.down_proj.weight": layer["mlp.down_proj.weight"],
    }
    ### END SOLUTION


# %% tests="translate" points=2
dice = torch.Generator().manual_seed(3)
strange = {name: torch.randn(weight.shape, generator=dice) for name, weight in theirs.model.layers[0].state_dict().items()}
made, wanted = translated(strange), model.blocks[0].state_dict()
assert set(made) == set(wanted), f"missing: {sorted(set(wanted) - set(made))}; not of a block: {sorted(set(made) - set(wanted))}"
for name, weight in made.items():
    assert weight.shape == wanted[name].shape, f"{name} has shape {tuple(weight.shape)}, want {tuple(wanted[name].shape)}"
rows = {"attention.qkv_proj.weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "ffn.gate_up_proj.weight": ("mlp.gate_proj", "mlp.up_proj")}
for name, parts in rows.items():
    first = 0
    for part in parts:
        weight = strange[f"{part}.weight"]
        assert torch.equal(made[name][first : first + len(weight)], weight), f"{name}: rows {first} to {first + len(weight) - 1} are not those of {part}"
        first += len(weight)
for name, theirs_is in (("attention_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"), ("attention.out_proj", "self_attn.o_proj"), ("ffn.down_proj", "mlp.down_proj")):
    assert torch.equal(made[f"{name}.weight"], strange[f"{theirs_is}.weight"]), f"{name} is not {theirs_is}"

# %% [markdown]
# And the logits?

# %%
weights = {"embedding.weight": theirs.model.embed_tokens.weight, "norm.weight": theirs.model.norm.weight}
for i, layer in enumerate(theirs.model.layers):
    weights |= {f"blocks.{i}.{name}": weight for name, weight in translated(layer.state_dict()).items()}
model.load_state_dict(weights)
tokens = torch.randint(90, (2, 40), generator=generator)
with torch.no_grad():
    want, got = theirs(tokens).logits, model(tokens.to(device)).cpu()
print(f"logits up to {want.abs().max():.0f}, largest difference below 1e-4: {bool((got - want).abs().max() < 1e-4)}")

# %% [markdown]
# One trap is left. RoPE turns pairs of numbers, and Meta's own files have the two of a pair as neighbours, where Hugging Face's have them half a
# head apart: rows of `q_proj` and `k_proj` in another order. Mix the two, and every shape fits, and the model talks nonsense.
#
# In the package all of this is `from_pretrained`. It reads one file or many, and checks every name and shape before the first number. What cannot
# be right, it says. Here the second of several files has lost its end, as a download may that was broken off:

# %%
import os
from pathlib import Path

folder = Path(tempfile.mkdtemp())
theirs.save_pretrained(folder, max_shard_size="40KB")
loaded = lk.llm.Transformer.from_pretrained(folder, device=device)
with torch.no_grad():
    print("the same logits:", torch.equal(loaded(tokens.to(device)).cpu(), got))
second = sorted(folder.glob("*.safetensors"))[1]
os.truncate(second, second.stat().st_size - 1000)
try:
    lk.llm.Transformer.from_pretrained(folder)
except LabKernelsError as error:
    print(str(error).replace(str(folder), "folder"))

# %% [markdown]
# ## One operation at a time
# The model runs on PyTorch's operations until it is told otherwise. `kernels` says for each operation whose it is, and can be changed at any time:

# %%
loaded.kernels

# %% [markdown]
# **Write** `agreement`: switch one operation to `"labkernels"` and back, and say how far the gradients are from those with everything on PyTorch: the
# largest absolute difference over all parameters, divided by the largest gradient. Gradients add up in `.grad` until `model.zero_grad()`.

# %% solution="agreement"
def agreement(model, operation, tokens, targets):
    ### BEGIN SOLUTION
    def gradients(kernels):
        model.kernels = kernels
        model.zero_grad()
        model(tokens, targets).backward()
        return [weight.grad.clone() for weight in model.parameters()]

    theirs, ours = gradients("torch"), gradients({operation: "labkernels"})
    model.kernels = "torch"
    return (max((a - b).abs().max() for a, b in zip(theirs, ours)) / max(a.abs().max() for a in theirs)).item()
    ### END SOLUTION


# %% tests="agreement" points=2
class Two(torch.nn.Module):
    """Two weights, whose gradients are known; one operation that is off by 1% of the larger, one that is right."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.kernels, self.calls = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3)), "torch", []

    def forward(self, tokens, targets):
        on = self.kernels if isinstance(self.kernels, str) else {name for name, where in self.kernels.items() if where == "labkernels"}
        self.calls.append(on)
        return (4 * self.a).sum() + ((-2.04 if "off" in on else -2) * self.b).sum()


two = Two()
off, right = agreement(two, "off", None, None), agreement(two, "right", None, None)
assert two.kernels == "torch" or set(two.kernels.values()) == {"torch"}, f"the model is left with kernels = {two.kernels!r}, want 'torch'"
assert "torch" in two.calls and {"off"} in two.calls, f"it ran with {two.calls}; it must run with everything on PyTorch, and with the one operation on ours"
assert abs(off - 0.01) < 1e-5, f"a gradient of -2.04 in place of -2, where the largest is 4, is off by 0.01; you say {off:.4g}"
assert right == 0.0, f"equal gradients are off by 0; you say {right:.4g}"

# %%
model, targets = loaded, torch.randint(90, (2, 40), generator=generator).to(device)
for operation in model.kernels:
    print(f"{operation:<10} gradients agree to 1e-4: {agreement(model, operation, tokens.to(device), targets) < 1e-4}")

# %% [markdown]
# Without a GPU all of these kernels ran in the emulator: the same CUDA C++, forward and backward, for a whole language model.
#
# And what do they gain? `torch.compile` takes a block as one graph with either set: the kernels are operators that it knows the shapes and
# gradients of. But it does not see into them, and cannot fuse them with what stands next to them. So an operation gains where a kernel written by
# hand beats what the compiler makes of it *and of its neighbours*. `rope and attention`, switched together, are one operator, which reads the
# projection where it lies, and writes its gradient where it belongs. On an H200, twelve layers of `645m`, 16 x 2048 tokens, forward and backward;
# what is below zero is lost:

# %%
from labkernels.llm import switched

switched.table()

# %% [markdown]
# By far the most is gained by the loss, in memory too: lab 09's never holds all logits. The other switches gain little, and some lose. Yet run alone,
# our norm is level with the compiler's and our product with cuBLAS's (labs 09 and 07). A benchmark of one operation does not say
# what a model gains by it: in a model it has neighbours, and a GPU that trains is held by its power limit, at which another kernel may be the
# faster one. All switches together gain more than they do one by one.
#
# ## Still wasted
# - **A trip for each norm.** What it writes, the next product reads. A kernel that normalises while it multiplies would make one trip of two.
# - **What is kept for the way back.** With our kernels a token leaves some 20 000 numbers behind in each layer of `645m`. The next lab
#   decides which of them to compute again.
# - **All tokens, for one.** To write the next token, this model computes all of those before it again. Lab 11's cache is not built in; lab 15 does that.
#
# What would you add next? A hint: of all operations above, which has the most bytes for the fewest FLOPs, and who are its neighbours?
