# %% [markdown]
# # 14 Training
# A model that has random weights writes random words. Training is one step, repeated: see some text, find out how each weight should have
# been different, and change it a little. Here you do it on this machine, and see where the time and the memory of a large one go.
#
# You write a schedule, the gradient of a batch that is too large, and the iteration that Muon is made of. You need lab 13.

# %% tags=["parameters"] again={"seed": 7, "steps": 20}
seed = 0
steps = 40           # of the small training below; 400 make it write words

# %%
%load_ext labkernels
import math

import torch

import labkernels as lk
from labkernels.llm import ModelConfig, TrainConfig, Trainer, Transformer, corpus
from labkernels.llm.training import recorded
from labkernels.llm.estimate import flops_per_token, parameters, training_memory
from labkernels.llm.training.monitor import loss_curve
from labkernels.llm.training.muon import newton_schulz
from labkernels.llm.data.shards import prepare

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(seed)
torch.set_num_threads(1)    # for a model as small as the first one here, more are slower

# %% [markdown]
# ## One step

# %%
lk.draw.training_step()

# %% [markdown]
# *Forward*: tokens become a loss, the mean surprise about each next token, in *nats*: minus the natural logarithm of the probability that it was
# given. *Backward*: the loss's derivative by every weight, layer by layer in reverse. For that each layer needs what it saw on the way forward, so
# it is kept: the *activations*. Then the *optimiser* moves the weights against their gradients.
#
# The text is the source of Python's standard library, for it is on your machine already. `prepare` trains a tokenizer on it, turns the
# text into tokens, and keeps some documents apart for validation.

# %%
data = prepare(corpus("stdlib", max_bytes=2_000_000), vocab_size=1024)
train, validation = data["train"], data["validation"]
print(f"{train.documents} documents to train on, {validation.documents} to validate with, a vocabulary of {data.vocab_size}")

# %%
shape = {"embed_dim": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 256}
config = TrainConfig(
    preset="10m", model=shape, steps=steps, batch_size=16, seq_len=48, lr=3e-3, warmup=5, precision="float32",
    evaluate_batches=2, sample_tokens=40, seed=seed, device="cpu", kernels="torch",
)
trainer = Trainer(config, data)
trainer.train()
loss_curve(trainer.rows)

# %% [markdown]
# At first every token is as likely as any other, and the loss is $\ln 1024 = 6.9$. Then the model learns which tokens are frequent, then
# which follow which. In these few steps it sees some twenty pages, and where the validation loss stands below the training loss, that is
# chance: it comes from three documents. *Bits per byte* is the same loss in bits, spread over the bytes of the text, so that models with
# other vocabularies can be compared. To train a model of ten million weights for a minute:
#
# ```sh
# labkernels train --preset 10m --minutes 1 --precision float32 --vocab-size 4096 --batch-size 4 --seq-len 128 --lr 2e-3 --warmup 10
# ```
#
# With `--folder` it can be killed at any time, and the same command continues.
#
# ## How fast to learn
# The *learning rate* says how far a step goes. At the beginning the optimiser knows little of the gradients' sizes, and large steps do
# harm: so it is *warmed up* along a line, $(s + 1) / w$ at step $s$ of $w$. Then it falls along half a cosine from 1 to a floor $f$, which
# it has at the last step, $n - 1$:
#
# $$ f + (1 - f)\,\frac{1 + \cos \pi p}{2}, \qquad p = \frac{s - w}{n - 1 - w} $$
#
# **Write** it, as a share of the highest learning rate.

# %% solution="schedule"
def schedule(step, steps, warmup, floor):
    """The learning rate of a step, 0 to steps - 1, as a share of the highest."""
    ### BEGIN SOLUTION
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / (steps - 1 - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
    ### END SOLUTION


# %% tests="schedule" points=2
expected = [(0, 100, 10, 0.1, 0.1), (9, 100, 10, 0.1, 1.0), (10, 100, 10, 0.1, 1.0), (99, 100, 10, 0.1, 0.1), (40, 61, 20, 0.0, 0.5),
            (30, 61, 20, 0.2, 0.8828427)]
for step, of, warmup, floor, want in expected:
    got = schedule(step, of, warmup, floor)
    assert math.isclose(got, want, abs_tol=1e-6), f"step {step} of {of}, warm-up {warmup}, floor {floor}: got {got:.4f}, want {want:.4f}"

# %%
from labkernels.llm.training.optim import wsd

lk.draw.learning_rates({"cosine": lambda s: schedule(s, 200, 20, 0.1), "warm-up, stable, decay": lambda s: wsd(s, 200, 20)}, 200)

# %% [markdown]
# The second one, *WSD* (warm-up, stable, decay), does not know how long it will be: it stays level until one decides to end, and only then
# falls. Any checkpoint on the plateau can be continued.
#
# ## A batch that does not fit
# Large models want batches of a million tokens, which no GPU holds. But a gradient is a sum over tokens, so it can be summed in parts:
# `backward()` *adds* to `.grad`. Several *micro-batches*, one after the other, then make one step.
#
# The trap: the loss of each is a mean over its targets, and a target of -100, such as the first token of another document, does not count.
# A mean of means is not the mean.
#
# **Write** the gradient of the mean over all targets that count, in all micro-batches. `model(inputs, targets)` is the mean loss of one.

# %% solution="accumulate"
def accumulate(model, batches):
    """batches: pairs (inputs, targets). Leaves in .grad what one large batch would; returns the mean loss, a float."""
    ### BEGIN SOLUTION
    counted = sum(int((targets != -100).sum()) for _, targets in batches)
    mean = 0.0
    for inputs, targets in batches:
        loss = model(inputs, targets) * (int((targets != -100).sum()) / counted)
        loss.backward()
        mean += loss.item()
    return mean
    ### END SOLUTION


# %% tests="accumulate" points=2
tiny = Transformer(ModelConfig(vocab_size=64, embed_dim=32, num_layers=1, num_heads=2, num_kv_heads=1, ffn_dim=64))
tokens = torch.randint(0, 64, (6, 17), generator=generator)
inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
targets[0, 3:], targets[3, 5:9] = -100, -100
whole = tiny(inputs, targets)
whole.backward()
want = [p.grad.clone() for p in tiny.parameters()]
for cuts in [(6,), (1, 5), (2, 2, 2), (1, 1, 1, 3)]:
    tiny.zero_grad()
    got = accumulate(tiny, list(zip(inputs.split(cuts), targets.split(cuts))))
    where = f"cut into {cuts} rows"
    assert got is not None and abs(got - whole.item()) < 1e-4, f"{where}: the mean loss is {whole.item():.4f}, got {got}"
    for (name, p), right in zip(tiny.named_parameters(), want):
        assert p.grad is not None, f"{where}: {name} has no gradient"
        length = f"it is {p.grad.norm() / right.norm():.3f} times as long as it must be"
        assert torch.allclose(p.grad, right, rtol=1e-3, atol=1e-5), f"{where}: the gradient of {name} is wrong; {length}"

# %% [markdown]
# ## Where the memory goes
# Weights in bfloat16 have 8 bits of precision: a step below 1/512 of a weight is rounded away. So the optimiser keeps a *master* of each
# weight in float32, changes that, and rounds a copy for the products. AdamW keeps two *moments* of each gradient besides, its mean and its
# mean square, in float32.
#
# **Predict.** Weights and gradients in bfloat16, masters and both moments in float32: how many GB (10⁹ bytes) for a model of 645 million
# weights? And for Llama 2 7B, with its 6.74 billion?

# %% solution="predict-memory"
small_gb = large_gb = None
### BEGIN SOLUTION
small_gb = 0.645 * (2 + 2 + 4 + 4 + 4)
large_gb = 6.74 * (2 + 2 + 4 + 4 + 4)
### END SOLUTION

# %% tests="predict-memory" points=1
lk.check_prediction("training memory", small_gb, large_gb)

# %% [markdown]
# That is before the first token. Then there are the activations, which grow with the batch. Here is all of it, estimated for a model that is not
# compiled. *Workspace* is what a block's backward pass makes and drops again:

# %%
model = ModelConfig.preset("645m")
step, kernels = {"batch": 16, "seq_len": 2048}, {"attention": "labkernels", "loss": "labkernels"}
estimates = {
    "logits at once": training_memory(model, **step, kernels=kernels | {"loss": "torch"}),
    "loss in chunks": training_memory(model, **step, kernels=kernels),
    "selective": training_memory(model, **step, kernels=kernels, checkpointing="selective"),
    "full": training_memory(model, **step, kernels=kernels, checkpointing="full"),
}
lk.draw.training_memory(estimates, limit_gb=141)

# %% [markdown]
# In the first row the loss holds numbers for 32768 tokens times 32768 words in float32, three times: log-softmax, its gradient, and that of the
# logits. Lab 09's loss makes them in chunks. *Activation checkpointing* keeps less and computes the rest again when the backward pass comes by.
# *Selective*: what products and attention made is kept, norms and SwiGLU are computed again, and cost little. *Full*: a block keeps its input
# alone, and is computed once more.
#
# *Stochastic rounding* does without masters. A weight between two bfloat16 numbers goes to either, with the probability that makes it
# right on average. A step of an eighth of their distance is then made by one weight in eight:

# %%
from labkernels.llm.training.optim import stochastic_bf16

weights = torch.ones(10_000) - 2.0**-11
nearest, stochastic = weights.bfloat16().float(), stochastic_bf16(weights, seed).float()
print(f"to nearest: {nearest.mean():.6f}   stochastic: {stochastic.mean():.6f}   exact: {weights.mean():.6f}")

# %% [markdown]
# ## Where the time goes
# Each weight multiplies each token once forward, and twice backward, for the gradient of what came in and for its own: 6 FLOPs. Attention
# comes on top. For each of *L* layers a query meets half of the *S* keys on average, in two products over all heads' *d* numbers:
# $2 \cdot 2 \cdot d \cdot S/2$ forward, three times that in all.
#
# *Model FLOPs utilisation*, MFU, is the share of these FLOPs in what the GPU could do. An H200 can do 989 TFLOP/s in bfloat16.
#
# **Predict.** The model has 645 million weights, 24 layers, d = 1536, S = 2048. Say a step of 16 × 2048 tokens takes 285 ms. What is the MFU?

# %% solution="predict-mfu"
mfu = None
### BEGIN SOLUTION
flops = 6 * 0.645e9 + 3 * 24 * (2 * 2 * 1536 * 2048 / 2)        # a token
mfu = flops * 16 * 2048 / 0.285 / 989e12
### END SOLUTION

# %% tests="predict-mfu" points=1
lk.check_prediction("mfu", mfu)

# %%
print(f"{parameters(model) / 1e6:.0f} million weights, {flops_per_token(model, 2048) / 1e9:.2f} GFLOP a token")

# %% [markdown]
# Half is a good value, all of it out of reach. What does each optimisation add? All rows below train this model, on the same tokens, from the
# same weights. Those named `hf_` are Hugging Face's model of the same shape; compiled, it would hand attention a mask and miss the fast causal
# path, which is mended.

# %%
ladder = recorded.ladder()
recorded.table(ladder)

# %%
lk.draw.ablation(ladder[ladder["preset"].eq("645m")])

# %% [markdown]
# The largest step is `flash`: before it all scores of attention go through memory, as in lab 04, which Hugging Face's rows never do. Scores of
# 16 sequences would not even fit, so up to `fused_adamw` a step is made of micro-batches, which is why these rows take so few GB.
#
# What norms and SwiGLU gain in `our_kernels`, its products lose; `cublas` gives the layers' products back and keeps the gain. Yet in lab 07 our
# product was level with cuBLAS's. A GPU that trains is held by its power limit, not by its clock, and there cuBLAS's is ahead. In `fused_products`
# those beside SwiGLU and the rotation are ours again, and do these while the sums are still in registers, which saves a pass over memory each.
# `cudnn_attention` won nothing in this run. Hugging Face's rows have no masters; beside them stands `stochastic`, which takes as many bytes a weight.
#
# Read the loss beside the speed: a row that is faster and learns less has won nothing. And do not trust it: after a dozen steps even the
# noise of 8-bit numbers may look like learning. Checkpointing costs time, and buys room for a larger batch or a larger model. GB are fewer than
# estimated above, for the compiler computes again what is cheap.
#
# Two other shapes, and what others have published of theirs, on GPUs of their own:

# %%
recorded.shapes(ladder).style.hide(axis="index")

# %% [markdown]
# **fp8.** Hopper multiplies 8-bit floats twice as fast as 16-bit ones. Those of weights and activations
# have 3 bits behind the point, and end at 448; those of gradients have 2, and reach further. So each tensor is scaled, by
# the largest number that it had in the steps before: to look for this step's takes a pass over memory of its own, as in `fp8_tensor` and
# `fp8_rows`. All three products of a linear layer are made this way, but a tensor core takes 8-bit operands in one order alone. So each tensor is
# written twice, as it is and transposed, in one pass. MFU counts against what bfloat16 could do, here too.
#
# ## A step of the same size in all directions
# AdamW divides each number of a gradient by its usual size. *Muon* looks at a weight as what it is, a matrix. The momentum $M = U S V^T$
# has a few large singular values, and most of what it says lies in the small ones. Muon steps along $U V^T$, where all of them are 1. In the
# table above it costs time, and after equal steps at the same learning rate has learned the most.
#
# A singular value decomposition would take longer than the step. But a polynomial of odd powers acts on the singular values alone,
# $x \mapsto a x + b x^3 + c x^5$, and so does
#
# $$ X \mapsto a X + b\,(X X^T) X + c\,(X X^T)^2 X $$
#
# With $a = 3.4445$, $b = -4.775$, $c = 2.0315$ small values grow more than threefold, and those near 1 stay near. Muon does it five times.
#
# **Write** one step. It takes three products.

# %% solution="newton-schulz"
def iterate(x):
    """x (rows, columns), rows <= columns, to one step of the iteration."""
    ### BEGIN SOLUTION
    square = x @ x.mT
    polynomial = -4.775 * square + 2.0315 * square @ square
    return 3.4445 * x + polynomial @ x
    ### END SOLUTION


# %%
def from_unit(x):
    return iterate(x / x.norm())


def polynomial_of_singular_values(x):
    u, s, v = torch.linalg.svd(x / x.norm(), full_matrices=False)
    return (u * (3.4445 * s - 4.775 * s**3 + 2.0315 * s**5)) @ v


def without_the_fifth_power(x):
    x = x / x.norm()
    return 3.4445 * x - 4.775 * x @ x.mT @ x


# %% tests="newton-schulz" points=2
cases = [{"x": (4, 4)}, {"x": (8, 24)}, {"x": (33, 70)}]
lk.check_against(polynomial_of_singular_values, from_unit, cases, mistakes={"the step without the fifth power": without_the_fifth_power});

# %% [markdown]
# Here is a gradient of the model that you trained, and what five steps make of its singular values. Each step lifts the small ones by the
# same factor, 3.44, until they come near 1. The smallest do not arrive, and need not: they began a thousand times smaller than the largest.

# %%
batch = next(trainer.loader)
trainer.model(batch.inputs, batch.targets).backward()
gradient = trainer.model.blocks[0].ffn.down_proj.weight.grad
seen = [gradient / gradient.norm()]
for _ in range(5):
    seen.append(iterate(seen[-1]))
lk.draw.singular_values(seen)

# %% [markdown]
# Two of the three products, $X X^T$ and its square, are symmetric. Half of their numbers need not be computed, and `symmetric_matmul` does
# not: a tile above the diagonal is stored twice, the second time transposed. For a weight of 1536 × 4096 that saves 29% of an iteration's FLOPs. Here
# is the product of an *m* × *m* matrix, beside cuBLAS, which computes all of it:

# %%
lk.bench("symmetric_matmul", ["v3_hopper", "cublas"]).plot()

# %% [markdown]
# Small ones do not fill the GPU, halved or not. Large ones take little more than half the time. And the result is the same, up to rounding:

# %%
whole, halved = (newton_schulz(gradient.bfloat16(), kernel=kernel) for kernel in ("torch", "labkernels"))
print(f"largest difference: {(whole - halved).abs().max():.4f}")

# %% [markdown]
# ## Eight minutes of a large GPU
# This command trained the model of 645 million weights on the Python that is installed on a machine, 240 MB of it, for eight minutes of an H200:
#
# ```sh
# labkernels train --preset 645m --corpus python --max-bytes 240000000 --minutes 8 --optimizer muon --lr 6e-4 --warmup 60 --folder runs/python_645m \
#     --log runs/python_645m.csv --evaluate-every 100 --evaluate-batches 16 --sample-every 200
# ```

# %%
import pandas

log = pandas.read_csv(recorded.trained("python_645m.csv"))
loss_curve(log)

# %% [markdown]
# What it wrote on the way, each time after `def `:

# %%
samples = log.loc[log["event"].notna(), ["step", "event"]]
for step, event in samples.iloc[::2].itertuples(index=False):
    print(f"after {step} steps: {event.removeprefix('sample: ')}\n")

# %% [markdown]
# Why always a number first? The prompt ends with a space, and in this vocabulary a name begins with its own: behind `def` comes the token
# ` read`. A space alone is what stands before digits. A prompt must end where a token ends.
#
# **Still wasted.** The optimiser waits until the last gradient is there. Norms are trips through memory between the products. fp8 numbers are
# made by kernels of their own, from 16-bit ones that other kernels have just written. Which of these would you fuse first?
