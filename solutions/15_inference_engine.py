# %% [markdown]
# # 15 The inference engine
# A trained model writes one token at a time, and for each it reads all of its weights. How fast that can be is known before a line is
# written: bytes over bandwidth. Here you build an engine in six steps towards that limit, and count at each what falls: work, launches,
# bytes. Then many conversations share it, and you talk to the model that you trained. You need labs 11 and 13.

# %% tags=["parameters"] again={"seed": 7, "folder": "", "steps": 15}
seed = 0
folder = ""          # what `labkernels train --folder runs/python` left: "../runs/python/model"
steps = 40           # of the tiny model that is trained here where no folder is given

# %%
%load_ext labkernels
import contextlib
import copy
import io
from dataclasses import dataclass

import torch
from torch.nn import functional as F

import labkernels as lk
from labkernels.kvcache.caches import PagedKVCache
from labkernels.lab.measured import recorded_ceilings
from labkernels.llm import Engine, ModelConfig, Tokenizer, TrainConfig, Trainer, Transformer, corpus, prepare
from labkernels.llm.inference import recorded
from labkernels.llm.inference.counted import counted
from labkernels.llm.inference.requests import SamplingParams
from labkernels.llm.inference.watched import watched
from labkernels.llm.quantisation import pareto
from labkernels.llm.quantisation.quantized import quantize_model

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_num_threads(1)    # for a model as small as this one, more are slower

# %%
if folder:
    model, tokenizer = Transformer.from_pretrained(folder, device=device, dtype=torch.float32), Tokenizer.load(folder)
else:
    data = prepare(corpus("stdlib", max_bytes=2_000_000), vocab_size=1024)
    shape = {"embed_dim": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 256, "max_seq_len": 256}
    training = TrainConfig(
        model=shape, steps=steps, batch_size=16, seq_len=48, optimizer="muon", lr=2e-2, warmup=5, precision="float32",
        evaluate_batches=1, sample_tokens=1, seed=seed, device="cpu", kernels="torch",
    )
    trainer = Trainer(training, data)
    with contextlib.redirect_stdout(io.StringIO()):    # what a training says is in lab 14
        trainer.train()
    model, tokenizer = trainer.model.to(device), data.tokenizer
    print(f"no folder is given: a tiny model of {sum(p.numel() for p in model.parameters()):,} weights was trained here in {steps} steps")
config = model.eval().requires_grad_(False).config
prompt = tokenizer.encode("class Reader:\n    def")

# %% [markdown]
# ## v1: everything again
# For the next token the model's logits behind the last one are needed, and no others:

# %%
def recompute(tokens):
    """v1. All tokens so far to the logits of the next one, (vocab,)."""
    hidden = model.hidden(torch.tensor([tokens], device=device))    # (1, tokens, embed_dim)
    return F.linear(hidden[0, -1], model.head_weight)


def greedy(next_logits, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(next_logits(tokens).argmax()))
    return tokens


slow = greedy(recompute, prompt, 24)
print(tokenizer.decode(slow))

# %% [markdown]
# **Predict.** A prompt of 64 tokens, an answer of 512. Each pass of v1 puts all tokens so far through the model. How many tokens is that in
# all 512 passes? And how many if each token went through once? The last one drawn need not go through at all.

# %% solution="predict-work"
recomputed = once = None
### BEGIN SOLUTION
recomputed = sum(64 + drawn for drawn in range(512))
once = 64 + 511
### END SOLUTION

# %% tests="predict-work" points=1
lk.check_prediction("engine work", recomputed, once)

# %% [markdown]
# ## v2: keep keys and values
# A new token needs of the others their keys and values, and these do not change. Lab 11 kept them; here they go into a model. RoPE is given:

# %%
def turn(heads, turns):
    """heads (..., head_dim), by the cosines and sines of their position, turns (..., head_dim)."""
    (first, second), (cos, sin) = heads.chunk(2, dim=-1), turns.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


# %% [markdown]
# **Write** attention for one token. `x` is its row, normed. Make its query, key and value, whose weights are stacked as in lab 13; turn query and
# key; write key and value into their place; then let each head of queries look at all tokens so far, itself among them. Heads are grouped as in
# lab 04: queries 0 and 1 share the first head of keys where there are twice as many.

# %% solution="cached-step"
def cached_attention(x, w_qkv, w_out, keys, values, position, turns):
    """x (embed_dim,), w_qkv ((heads + 2 kv_heads) head_dim, embed_dim), w_out (embed_dim, heads head_dim): (embed_dim,).

    The cache is keys and values (kv_heads, room, head_dim), with `position` tokens in it.
    """
    kv_heads, _, head_dim = keys.shape
    ### BEGIN SOLUTION
    qkv = F.linear(x, w_qkv).view(-1, head_dim)
    q, k, v = qkv.split([len(qkv) - 2 * kv_heads, kv_heads, kv_heads])
    keys[:, position], values[:, position] = turn(k, turns), v
    groups = turn(q, turns).view(kv_heads, -1, head_dim)
    scores = groups @ keys[:, : position + 1].mT * head_dim**-0.5       # (kv_heads, group, tokens)
    out = scores.softmax(-1) @ values[:, : position + 1]
    return F.linear(out.flatten(), w_out)
    ### END SOLUTION


# %%
def turns_of(tokens, dim, like):
    return lk.functional.rope_table(lk.functional.rope_frequencies(dim), tokens).to(like)


def over_a_text(x, w_qkv, w_out, heads, kv_heads):
    """Your function, token after token. What no token has written yet is 7; weights are small, so that scores are near 1."""
    dim = len(w_qkv) // (heads + 2 * kv_heads)
    cache, turns = x.new_full((2, kv_heads, len(x) + 3, dim), 7.0), turns_of(len(x), dim, x)
    return torch.stack([cached_attention(row, 0.3 * w_qkv, 0.3 * w_out, *cache, at, turns[at]) for at, row in enumerate(x)])


def at_once(x, w_qkv, w_out, heads, kv_heads, turned="qk", diagonal=1, shared="group", scaled=True):
    """The formula for all tokens at once. The last four are the mistakes that are looked for."""
    dim = len(w_qkv) // (heads + 2 * kv_heads)
    qkv = (0.3 * x @ w_qkv.mT).unflatten(-1, (-1, dim)).transpose(0, 1).split([heads, kv_heads, kv_heads])    # (heads, tokens, dim) each
    q, k, v = (turn(part, turns_of(len(x), dim, x)) if name in turned else part for name, part in zip("qkv", qkv))
    of = [h * kv_heads // heads if shared == "group" else h % kv_heads for h in range(heads)]
    scores = q @ k[of].mT * (dim**-0.5 if scaled else 1.0)
    hidden = torch.ones(len(x), len(x), device=x.device).triu(diagonal).bool()
    hidden[0, 0] = False
    out = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[of]
    return 0.3 * out.transpose(0, 1).flatten(1) @ w_out.mT


def formula(**changes):
    return lambda x, w_qkv, w_out, heads, kv_heads: at_once(x, w_qkv, w_out, heads, kv_heads, **changes)


# %% tests="cached-step" points=3
mistakes = {
    "the one in which a token does not see itself": formula(diagonal=0),
    "the one in which the new key is not turned": formula(turned="q"),
    "the one in which the query is not turned": formula(turned="k"),
    "the one in which the value is turned, too": formula(turned="qkv"),
    "the one whose queries 0, 1, 2 ... take keys 0, 1, 0 ... in turn": formula(shared="in turn"),
    "the one without head_dim**-0.5": formula(scaled=False),
}
cases = [
    {"x": (tokens, 12), "w_qkv": ((h + 2 * kv) * 8, 12), "w_out": (12, h * 8), "heads": h, "kv_heads": kv}
    for tokens, h, kv in [(1, 2, 1), (5, 4, 2), (9, 3, 3), (33, 6, 2)]
]
lk.check_against(formula(), over_a_text, cases, mistakes=mistakes);

# %% [markdown]
# The rest of a step is the block of lab 13, for one row. And the engine is a class that remembers how far it is:

# %%
class Cached:
    """v2. As `recompute`, but only tokens that it has not seen yet go through the model, one by one."""

    def __init__(self, room):
        self.length = 0
        self.caches = torch.zeros(config.num_layers, 2, config.num_kv_heads, room, config.head_dim, device=device)

    def __call__(self, tokens):
        for token in tokens[self.length :]:
            x = self.step(torch.tensor(token, device=device))
        return F.linear(x, model.head_weight)

    def step(self, token):
        x = F.embedding(token, model.embedding.weight)    # (embed_dim,)
        for block, (keys, values) in zip(model.blocks, self.caches):
            y = F.rms_norm(x, x.shape, block.attention_norm.weight, config.norm_eps)
            weights = block.attention.qkv_proj.weight, block.attention.out_proj.weight
            x = x + cached_attention(y, *weights, keys, values, self.length, model.angles[self.length])
            y = F.rms_norm(x, x.shape, block.ffn_norm.weight, config.norm_eps)
            gate, up = F.linear(y, block.ffn.gate_up_proj.weight).chunk(2)
            x = x + F.linear(F.silu(gate) * up, block.ffn.down_proj.weight)
        self.length += 1
        return F.rms_norm(x, x.shape, model.norm.weight, config.norm_eps)


print("the same tokens:", greedy(Cached(256), prompt, 24) == slow)

# %% [markdown]
# What has it bought? `counted()` counts launches, that is operations on numbers, of which a GPU makes a kernel or more, and the bytes that go in and
# come out of them. The 64th token:

# %%
text = (slow * 3)[:64]
cached = Cached(64)
cached(text[:63])
for name, function in {"v1 recompute": recompute, "v2 cached": cached}.items():
    with counted() as seen:
        function(text)
    print(f"{name:<17}{seen.launches:>4} launches {seen.bytes / 1e6:6.2f} MB")

# %% [markdown]
# The bytes fell: v1 carries 63 rows along that nobody asked for. What is left is what a token must read, the weights. The launches did not fall: one
# token needs as many as all of them.
#
# ## v3: fewer, larger kernels
# A launch does little here: it turns half of a row, or adds two of them. On a GPU each reads from memory what the last one wrote. So what stands
# between two products goes into one of them:

# %%
lk.draw.layer_launches()

# %% [markdown]
# The package's engine has these kernels (`labkernels/gemv`, `labkernels/llm/inference/decode`); without a GPU they run in the emulator. They read
# 16-bit weights, so the model is rounded to bfloat16 first, and v2, which the package has in pages for many, is counted again:

# %%
small = copy.deepcopy(model).to(torch.bfloat16)


def one_token(runner, of=small, **options):
    """Counts of an engine's step, the 64th token's."""
    engine = Engine(of, runner=runner, max_batch=1, cache_tokens=64, page_size=16, lookahead=1, **options)
    engine.submit(text[:62], SamplingParams(max_new_tokens=3, ignore_eos=True))
    engine.step()
    with counted() as seen:
        engine.step()
    return seen


for name, seen in {"the package's v2": one_token("cached", invariant=False), "v3 fused": one_token("fused")}.items():
    print(f"{name:<17}{seen.launches:>4} launches {seen.bytes / 1e6:6.2f} MB  ", dict(seen.by_name.most_common(5)))

# %% [markdown]
# Five a layer now, one that begins the step, the head. The rest is the draw, of small operations here.
#
# **Predict.** Llama 3.2 1B has 16 layers. How many launches has a token of yours, with 30 a layer, and of v3 with 5? Both have three more:
# the embedding with what begins a step, the head with the norm before it, and the draw. And if Python needs 15 µs to launch one of v3's
# kernels, how many tokens a second can it launch?

# %% solution="predict-launches"
of_v2 = of_v3 = rate = None
### BEGIN SOLUTION
of_v2 = 16 * 30 + 3
of_v3 = 16 * 5 + 3
rate = 1 / (of_v3 * 15e-6)
### END SOLUTION

# %% tests="predict-launches" points=1
lk.check_prediction("engine launches", of_v2, of_v3, rate)

# %% [markdown]
# ## v4: one launch a token
# The kernels of a step are the same each time; the token, the length and the pages can lie in the GPU's memory. So the step is recorded once, as a
# *CUDA graph*, and then launched as a whole. The drawn token stays on the GPU, where the next step reads it, and the CPU looks only every few
# tokens: after an early stop a few were drawn for nothing. On a GPU it is `Engine(small, runner="graphs")`. The last row is for later.

# %%
lk.draw.token_timeline()

# %% [markdown]
# ## The limit
# What remains is reading. A pass reads each weight of the layers once, and the head; and for each sequence its own keys and values. A row of the
# embedding, and norms, are nothing beside that.
#
# **Write** the bytes that one pass reads, for a SwiGLU model whose layers' weights have `bits` bits each (in int4 that is 4.25, with the scales of
# its groups). The head, keys and values have 16. `config` has `num_layers`, `embed_dim`, `num_heads`, `num_kv_heads`, `head_dim`,
# `ffn_dim`, `vocab_size`.

# %% solution="limit"
def bytes_of_a_pass(config, batch, length, bits=16):
    """`batch` sequences get a token each, and have `length` tokens in the cache: (of the layers, of the head, of keys and values)."""
    c = config
    ### BEGIN SOLUTION
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    weights = c.num_layers * c.embed_dim * (q + 2 * kv + q + 3 * c.ffn_dim)
    return weights * bits / 8, c.vocab_size * c.embed_dim * 2, batch * length * c.num_layers * 2 * kv * 2
    ### END SOLUTION


# %% tests="limit" points=2
tied = ModelConfig(90, 24, 3, 6, 2, 40, head_dim=8, max_seq_len=64)
untied = ModelConfig(70, 16, 2, 4, 4, 56, head_dim=6, max_seq_len=64, tie_embeddings=False)
for name, shape in {"tied": tied, "untied": untied}.items():
    real = Transformer(shape)
    matrices = sum(p.numel() for block in real.blocks for p in block.parameters() if p.dim() == 2)
    of_a_token = PagedKVCache(shape.num_layers, 1, shape.num_kv_heads, 1, shape.head_dim, device="cpu").nbytes
    for batch, length, bits in [(1, 1, 16), (1, 40, 4.25), (7, 33, 8)]:
        got = bytes_of_a_pass(shape, batch, length, bits)
        want = (matrices * bits / 8, real.head_weight.numel() * 2, batch * length * of_a_token)
        for part, mine, right in zip(("the layers", "the head", "keys and values"), got, want):
            where = f"{name} model, batch {batch}, length {length}, {bits} bits: of {part}"
            assert mine is not None and abs(mine - right) < 0.5, f"{where} you say {mine:,.0f} bytes, in memory they are {right:,.0f}"

# %% [markdown]
# When it does nothing else, an H200 reads so many GB (10⁹ bytes) a second:

# %%
llama, bandwidth = ModelConfig.preset("llama-3.2-1b"), recorded_ceilings().read_gb_per_s
print(f"{bandwidth:,.0f} GB/s")

# %% [markdown]
# **Predict.** How many tokens a second does that allow of `llama` in bfloat16, with 320 tokens in the cache? And how many of 16 such
# sequences together? Use what you wrote.

# %% solution="predict-rate"
alone = together = None
### BEGIN SOLUTION
alone = bandwidth * 1e9 / sum(bytes_of_a_pass(llama, 1, 320))
together = 16 * bandwidth * 1e9 / sum(bytes_of_a_pass(llama, 16, 320))
### END SOLUTION

# %% tests="predict-rate" points=1
lk.check_prediction("engine rate", alone, together, gb_per_s=bandwidth)

# %% [markdown]
# ## v5: less to read
# A limit of bytes moves when there are fewer. One sequence again:

# %%
parts = ("layers", "head", "keys and values")
rows = {name: dict(zip(parts, bytes_of_a_pass(llama, 1, 320, bits))) for name, bits in {"bf16": 16, "int8": 8, "int4": 4.25}.items()}
rows["int4, head too"] = rows["int4"] | {"head": rows["int4"]["head"] * 4.25 / 16}
rows["bf16, at 32k"] = dict(zip(parts, bytes_of_a_pass(llama, 1, 32_768)))
lk.draw.token_bytes(rows, bandwidth)

# %% [markdown]
# At int4 the head, in 16 bits still, is half of what is read; at 32 thousand tokens the cache is nearly a third. In our small model:

# %%
for scheme in ("int8", "int4"):
    seen = one_token("fused", of=quantize_model(copy.deepcopy(small), scheme))
    print(f"v5 {scheme:<14}{seen.launches:>4} launches {seen.bytes / 1e6:6.2f} MB")

# %% [markdown]
# What does that cost? Here is the model of lab 14's long run, on text that was kept from it, and the speed of one answer on an H200. `none` is as it
# was trained, `int4-mse` has the scales of lab 10 with the least error, `+int8` is a cache of 8 bits, whose speed was recorded when writing it took
# four launches for today's one. A line joins those that none beats in both respects.

# %%
pareto.plot(pareto.recorded())

# %% [markdown]
# int8 costs nothing that can be told from chance, fp8 a thousandth of a nat a token, 4 bits a hundredth or more. Nothing is faster than int8: in so
# small a model most of a step is the way from one kernel to the next. `labkernels evaluate` draws this of a model of yours.
#
# ## v6: never a pause
# Between two kernels of a graph memory stands idle for a microsecond or two: the last blocks of one finish, the first of the next begin,
# and ask, and wait. *Programmatic dependent launch* lets a kernel begin while the one before runs, as in the last row of the timeline. It asks for
# its first weights, which nobody writes, and only then waits.
#
# All of it on an H200: Llama 3.2 1B's shape, one sequence, a prompt of 64 tokens. `naive` to `graphs` are v1 to v4; `early` is v6, at first in
# bfloat16, then with v5's weights and a head of 8 bits. In grey is what `torch.compile` makes, with CUDA graphs of its own, of a plain module and of
# Hugging Face's model, whose prompts are not compiled.

# %%
ladder = recorded.ladder()
lk.draw.engine_ladder(ladder)

# %%
recorded.table(ladder, "runner", "weights", "ms_per_token", "first_token_ms", "launches", "bytes_per_step")

# %% [markdown]
# The cache alone wins nothing here: an H200 computes some hundred tokens again in less time than Python needs for the launches, and the package's
# v2 has more of them. v3 has those that you predicted, and a few. But divide its time by them: Python takes not 15 µs for each, but 100. v4 is the
# same kernels without Python, one fewer than you predicted, for the head itself finds the likeliest token. And v6 writes 1.7 times as many tokens as
# the compiled module.
#
# With 4 bits a step reads a third of the bytes and takes more than half of the time: most of what is left is the way from one kernel to the
# next. Nor are bytes all. Tensor cores multiply int8 and int4 as they are; fp8 and nf4 must become 16-bit numbers first, one by arithmetic, one by
# a table. So fp8 is slower than int8 for as many bytes, and nf4 for fewer.
#
# A model of 8 billion weights is nearer to its limit, since each kernel has more to read. A prompt of 8192 tokens is computed at once, and
# arithmetic is its limit. The last columns are the memory at its most, and what was estimated before anything was loaded.

# %%
stored, measured = ("weights", "cache", "prompt"), ("tokens_per_s", "first_token_ms", "share_of_limit", "peak_gb", "estimate_gb")
recorded.table(recorded.shapes(), "model", "runner", *stored, *measured)

# %% [markdown]
# Five kinds of answer, as long as in a table that others have published, from the prompt to the last token. Theirs says 22.7 tokens/s, which was not
# measured here:

# %%
recorded.table(recorded.answers())

# %% [markdown]
# ## Many at once
# You predicted it: a pass for 16 sequences reads the weights once, so 15 of them cost little, until keys and values outweigh the weights. Tokens a
# second of all sequences:

# %%
recorded.table(recorded.many())

# %% [markdown]
# Behind 1024 tokens 16 sequences get ten times the tokens of one. The bytes allow more: what is read of the weights is shared, arithmetic and
# attention are not. Behind 8192 tokens seven eighths of what 64 read are keys and values, at 86% of the limit. Weights of 4 bits, which win most for
# one, win nearly nothing there, but keys and values of 8 bits win 1.4 times. One sequence wins nothing by them: its cache is a tenth of what it reads,
# and writing it takes a launch more in each layer, for no number can be scaled before the largest of its head is known.
#
# So a server wants a full batch. But prompts come when they come, and answers end when they end. *Continuous batching* decides anew before each
# pass who is in it.
#
# The cache has only so many pages, and nobody knows how long an answer will be. So a request takes pages as it grows. When none is free, the one
# that came last gives its own back, and is computed again later, prompt and answer so far: *pre-emption*. The one that came first always goes on.
#
# **Write** a step, of counts alone.
#
# 1. Everyone who runs gets a token, in order of arrival. Each first takes the pages that `needs` says. While too few are free, the *last* of
#    `running` gives its pages back and goes to the *front* of `waiting`. That may be the one whose turn it is.
# 2. Then those who wait are admitted, from the front, as long as fewer than `most` run and there are pages for the first of them. They get
#    a token, too.

# %% solution="plan"
@dataclass(eq=False)
class Request:
    number: int          # in order of arrival
    tokens: int          # prompt, and answer so far
    pages: int = 0       # that it holds


class Batch:
    def __init__(self, pages, page_size, most):
        self.free, self.page_size, self.most = pages, page_size, most
        self.waiting, self.running = [], []

    def needs(self, request):
        """Pages that it lacks for its tokens and one more."""
        return -(-(request.tokens + 1) // self.page_size) - request.pages

    def take(self, request):
        self.free, request.pages = self.free - self.needs(request), request.pages + self.needs(request)

    def give_back(self, request):
        self.free, request.pages = self.free + request.pages, 0

    def step(self):
        """Those who get a token in this pass, in order of arrival."""
        chosen = []
        ### BEGIN SOLUTION
        for request in list(self.running):
            while request in self.running and self.needs(request) > self.free:
                last = self.running.pop()
                self.give_back(last)
                self.waiting.insert(0, last)
            if request in self.running:
                self.take(request)
                chosen.append(request)
        while self.waiting and len(self.running) < self.most and self.needs(self.waiting[0]) <= self.free:
            request = self.waiting.pop(0)
            self.take(request)
            self.running.append(request)
            chosen.append(request)
        ### END SOLUTION
        return chosen


# %%
def play(seed, pages=12, page_size=4, most=5, requests=14):
    """Requests come at random; each wants its tokens. Complains of the first pass in which something is wrong."""
    dice = torch.Generator().manual_seed(seed)
    batch, wanted, number = Batch(pages, page_size, most), {}, 0

    def numbers(some):
        return [each.number for each in some]

    while len(wanted) < requests or batch.waiting or batch.running:
        number += 1
        assert number < 2000, "2000 passes, and there is no end"
        if len(wanted) < requests and torch.rand(1, generator=dice) < 0.4:
            tokens, answer = (int(torch.randint(1, end, (1,), generator=dice)) for end in (20, 28))
            batch.waiting.append(Request(len(wanted), tokens))
            wanted[batch.waiting[-1]] = tokens + answer
        ran, waited = numbers(batch.running), numbers(batch.waiting)
        where = f"seed {seed}, pass {number}, before which {ran} ran, {waited} waited and {batch.free} pages were free"
        chosen = batch.step()
        run, wait = numbers(batch.running), numbers(batch.waiting)
        now = f"{where}: now {run} run and {wait} wait"
        assert sorted(run + wait) == sorted(ran + waited), now
        assert numbers(chosen) == run, f"{now}, and {numbers(chosen)} get a token"
        assert run + wait == sorted(run + wait), f"{now}; who came first must not be behind"
        for each in batch.running:
            assert each.pages * page_size > each.tokens, f"{now}: request {each.number} has {each.pages} pages for {each.tokens} tokens and one more"
        assert not any(each.pages for each in batch.waiting), f"{now}: somebody who waits holds pages"
        unused = pages - sum(each.pages for each in batch.running)
        assert batch.free == unused >= 0, f"{now}: nobody holds {unused} pages, and {batch.free} are free"
        idle = wait and len(run) < most and batch.needs(batch.waiting[0]) <= batch.free
        assert not idle, f"{now}: there are pages for request {wait[0]}, and it waits"
        for each in chosen:
            each.tokens += 1
            if each.tokens == wanted[each]:
                batch.give_back(each)
                batch.running.remove(each)


# %% tests="plan" points=3
for game in range(40):
    play(game, most=2 + game % 5)

# %% [markdown]
# The package's engine does the same, with chunks of prompts and real pages; but the last one, when it lacks a page itself, keeps those that it has
# and waits. Five requests, of which two come later, in 11 pages of 4 tokens. Who reads its prompt in a pass gets two tokens:

# %%
engine = Engine(model, runner="cached", invariant=True, max_batch=4, cache_tokens=44, page_size=4, share_prefixes=False)
sizes = {"A": (0, 9, 9), "B": (0, 6, 13), "C": (0, 11, 7), "D": (3, 5, 8), "E": (5, 7, 5)}    # when it comes, tokens of prompt and answer
arrivals = {name: (when, [(37 * at + ord(name) + seed) % 250 for at in range(length)], answer) for name, (when, length, answer) in sizes.items()}
requests, rows, pages = watched(engine, arrivals)
lk.draw.batch_timeline(rows, pages, engine.stats.num_pages)

# %% [markdown]
# Nobody waits for a batch to end. And pre-emption has lost nothing but time:

# %%
alone = Engine(model, runner="cached", invariant=True, max_batch=1)
for name, each in requests.items():
    answer = alone.generate(each.prompt, max_new_tokens=sizes[name][2], ignore_eos=True)
    print(f"{name}: pre-emptions {each.preemptions}, the same answer as alone: {answer.tokens == tuple(each.tokens)}")

# %% [markdown]
# Prompts that begin alike share full pages, as in lab 11.
#
# **Predict.** 40 conversations are running. Each has the same 1000 tokens of instructions, then a question and an answer of its own, 150
# tokens. A page has 16 tokens. How many pages do they take without sharing, and how many with it? A page is shared only if all of its
# tokens are.

# %% solution="predict-sharing"
apart = shared = None
### BEGIN SOLUTION
apart = 40 * -(-1150 // 16)
shared = 1000 // 16 + 40 * -(-(1150 - 1000 // 16 * 16) // 16)
### END SOLUTION

# %% tests="predict-sharing" points=1
lk.check_prediction("shared pages", apart, shared)

# %% [markdown]
# Four questions, one after the other, with the same 50 tokens of instructions:

# %%
engine = Engine(model, tokenizer, runner="cached", max_batch=4, page_size=16)
instructions = (slow * 3)[:50]
for question in range(4):
    engine.generate([*instructions, 10 + question, 20 + question], max_new_tokens=2)
stats = engine.stats
print(f"{stats.prompt_tokens} tokens of prompts, {stats.computed_prompt_tokens} computed, {stats.shared_tokens} found in the cache")

# %% [markdown]
# ## What may be shown
# A reader wants to see the answer as it is written, in pieces. But it ends at a *stop string*, say `"\n\n"` or `"User:"`, which is not to be seen.
# After a first `"\n"` nobody knows yet. So what stands at the end and might begin a stop string is held back, and nothing else.
#
# **Write** it. `held` is all text that has come and was not shown yet.

# %% solution="hold-back"
def release(held, stops):
    """(what may be shown, what is held back, whether a stop string was found). With several, the one that begins first counts."""
    ### BEGIN SOLUTION
    found = [held.find(stop) for stop in stops if stop in held]
    if found:
        return held[: min(found)], "", True
    keep = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
    return held[: len(held) - keep], held[len(held) - keep :], False
    ### END SOLUTION


# %%
def judge_stream(text, stops, size):
    """`text` comes in pieces of `size` characters."""
    shown, held, wanted = "", "", text[: min((text.index(stop) for stop in stops if stop in text), default=None)]
    for at in range(0, len(text), size):
        come = text[: at + size]
        told = f"text {come!r} with stops {stops}"
        new, held, stopped = release(held + text[at : at + size], stops)
        shown += new
        if any(stop in come for stop in stops):
            assert stopped, f"{told}: it has come to its end, and goes on"
            assert shown == wanted, f"{told}: {shown!r} was shown, want {wanted!r}"
            return
        assert not stopped, f"{told}: no stop string has come yet"
        assert shown + held == come, f"{told}: shown {shown!r} and held back {held!r} do not make the text"
        begun = max((stop[:n] for stop in stops for n in range(len(stop)) if come.endswith(stop[:n])), key=len)
        assert len(held) <= len(begun), f"{told}: {held!r} is held back, which begins no stop string"
        assert len(held) >= len(begun), f"{told}: shown is {shown!r}, but {begun!r} at the end might begin a stop string"


# %% tests="hold-back" points=2
dice = torch.Generator().manual_seed(1)
endings = (["\n\n"], ["aab"], ["abab"], ["\n\n", "aab"], ["ba", "\na"])
for number in range(300):
    letters = "".join("ab\n"[i] for i in torch.randint(3, (14,), generator=dice).tolist())
    judge_stream(letters, endings[number % 5], 1 + number % 3)
judge_stream("Is it so? Use it.\n\nUser: and now", ["User:", "\n\nS"], 4)

# %% [markdown]
# A token may end inside of a character, too: `é` is two bytes. The package's stream holds back both. Pieces as they come:

# %%
engine = Engine(model, tokenizer, max_batch=4)
options = {"max_new_tokens": 40, "temperature": 0.7, "top_p": 0.95, "seed": seed, "stop": ["\n\n"]}
print("|".join(event.text for event in engine.generate("class Reader:\n    def", stream=True, **options)))

# %% [markdown]
# ## Talk to it
# A *chat template* makes a text of a conversation, with marks for who speaks. The model continues it, until it draws the mark of an end:

# %%
print(tokenizer.render_chat([{"role": "user", "content": "Write a class."}]))

# %%
conversation = []


def ask(words, **options):
    """Your turn, and then the model's, as it comes. It remembers what was said."""
    conversation.append({"role": "user", "content": words})
    answer = ""
    for event in engine.chat(conversation, stream=True, **{"max_new_tokens": 48, "temperature": 0.7, "top_p": 0.9, "seed": seed} | options):
        answer += event.text
        print(event.text, end="", flush=True)
    conversation.append({"role": "assistant", "content": answer})


ask("import os\n\nclass")

# %% [markdown]
# It was taught to continue Python, not to converse, and for a few seconds; those marks it has never seen. Train a larger one for minutes, here or
# as in lab 14. Give its folder as `folder` in the first cell, or talk to it in a terminal:
#
# ```sh
# labkernels train --preset 10m --minutes 5 --precision float32 --vocab-size 4096 --batch-size 4 --seq-len 128 --folder runs/python
# labkernels chat runs/python/model
# labkernels serve runs/python/model
# ```
#
# The last one speaks OpenAI's protocol: the README calls it with their client.
#
# ## Still wasted
# - **Attention of one short sequence.** It takes its microseconds in every layer, and reads little. One kernel for a whole token would begin on the
#   next weights.
# - **Passes that read everything for one token.** A small model could guess the next four, and the large one check all of them in one pass,
#   which reads no more than a pass for one: *speculative decoding*. `PageAllocator.truncate` takes back what was guessed wrong.
# - **Prompts beside answers.** A chunk of a prompt is bound by arithmetic, an answer by memory. In one pass they could hide each other.
#
# What would you add next? And ask your limit: at which batch and length are keys and values half of the bytes of Llama 3.2 1B?
