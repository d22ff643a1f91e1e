# %% [markdown]
# # 08 The feed-forward network
# Two thirds of a transformer's weights are in its feed-forward networks: a product that makes each token's row longer, a function that
# bends it, a product that makes it short again. The products are cuBLAS's daily bread. What is between them is yours.
#
# You fuse the function into the product, then a gate, and then, for one token at a time, both products into one kernel. You need lab 03.

# %% tags=["parameters"] again={"seed": 7, "tokens": 19}
seed = 0
tokens = 33          # of the examples; odd sizes welcome

# %%
%load_ext labkernels
import pandas
import torch
import torch.nn.functional as F

import labkernels as lk

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(seed)


def random(*shape):
    return torch.randn(shape, generator=generator).to(device)


def blocks(count, size):
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


# %% [markdown]
# ## Where the time goes
# *x* has a row of 4096 numbers for each token. $W_1$ makes them 11008, the *hidden* numbers, and $W_2$ makes them 4096 again. These are the
# sizes of Llama 7B:
#
# $$ y = \text{GELU}(x\, W_1^T + b_1)\, W_2^T + b_2 $$
#
# **Predict.** In bfloat16: how many bytes are both weights? How many FLOPs do both products cost for each token? From which number of tokens
# on does an H200, with 989 TFLOP/s and 4.8 TB/s, need longer for the products than to read the weights once?

# %% solution="predict-ffn"
weight_bytes = token_flops = break_even = None
### BEGIN SOLUTION
weight_bytes = 2 * 4096 * 11008 * 2
token_flops = 2 * 2 * 4096 * 11008
break_even = (weight_bytes / 4.8e12) / (token_flops / 989e12)
### END SOLUTION

# %% tests="predict-ffn" points=1
lk.check_prediction("ffn balance", weight_bytes, token_flops, break_even)

# %% [markdown]
# The first two numbers are the same: a weight has 2 bytes, and costs 2 FLOPs a token.
#
# So there are two problems. In training, with thousands of tokens, the products fill the time. When a model writes, one token at a time,
# reading the weights fills it.
#
# ## In between
# PyTorch needs three operations. They write the *hidden matrix*, a row of 11008 for each token, to memory twice, and read it as often:

# %%
lk.draw.ffn_trips()

# %% [markdown]
# A matmul kernel has each sum in a register at the end, on its way out. Whatever is done to it there, element by element, costs no trip. That
# place is called the *epilogue*. cuBLAS adds the bias there. The function can follow it.
#
# GELU is *x* times the probability that a normally distributed number is below *x*. With the usual approximation:
#
# $$ \text{GELU}(x) \approx \tfrac{x}{2}\,(1 + \tanh u), \qquad u = \sqrt{2/\pi}\,(x + 0.044715\,x^3) $$
#
# **Write** the epilogue of the tiled product from lab 03: add the column's bias to `sum`, bend it, and write it. `tanhf` is there.

# %% solution="epilogue"
%%cuda --name product_gelu
// x (rows, depth), w (cols, depth) as nn.Linear keeps it, bias (cols,), y (rows, cols). Blocks of 16 x 16.
__global__ void product_gelu(const float* x, const float* w, const float* bias, float* y, int rows, int cols, int depth) {
    __shared__ float x_tile[16][17], w_tile[16][17];
    const int row = blockIdx.y * 16 + threadIdx.y, col = blockIdx.x * 16 + threadIdx.x;
    float sum = 0.0f;
    for (int first = 0; first < depth; first += 16) {
        const int k = first + threadIdx.x, w_row = blockIdx.x * 16 + threadIdx.y;
        x_tile[threadIdx.y][threadIdx.x] = row < rows && k < depth ? x[row * depth + k] : 0.0f;
        w_tile[threadIdx.y][threadIdx.x] = w_row < cols && k < depth ? w[w_row * depth + k] : 0.0f;
        __syncthreads();
        for (int i = 0; i < 16; ++i) sum += x_tile[threadIdx.y][i] * w_tile[threadIdx.x][i];
        __syncthreads();
    }
    if (row < rows && col < cols) {
        // BEGIN SOLUTION
        const float z = sum + bias[col];
        const float u = 0.7978845608f * (z + 0.044715f * z * z * z);
        y[row * cols + col] = 0.5f * z * (1.0f + tanhf(u));
        // END SOLUTION
    }
}

# %%
def my_product_gelu(x, w, bias):
    y = torch.empty(len(x), len(w), device=x.device)
    product_gelu((blocks(len(w), 16), blocks(len(x), 16)), (16, 16), (x, w, bias, y, len(x), len(w), x.shape[1]))
    return y


def product_gelu_reference(x, w, bias):
    return F.gelu(F.linear(x, w, bias), approximate="tanh")


mistakes = {
    "that of the product alone": lambda x, w, bias: F.linear(x, w),
    "without the bias": lambda x, w, bias: F.gelu(F.linear(x, w), approximate="tanh"),
    "with the bias added after GELU; it comes before": lambda x, w, bias: F.gelu(F.linear(x, w), approximate="tanh") + bias,
}

# %% tests="epilogue" points=3
cases = [{"x": (s, k), "w": (n, k), "bias": (n,)} for s, n, k in [(1, 1, 1), (5, 33, 7), (20, 40, 19)]]
lk.check_against(product_gelu_reference, my_product_gelu, cases, mistakes=mistakes);

# %% [markdown]
# What does that buy? The hidden matrix of 4096 tokens is 90 MB in bfloat16. One write and one read fewer are 0.04 ms on an H200, and both
# products take a millisecond: four percent. And cuBLAS has an epilogue with GELU, for those who ask for it. There is little to win here.
# There is something to lose: on an H200 `matmul`'s `v7_hopper` takes 175 µs for 4096 x 4096 x 4096, and its first epilogue of bias and GELU took 45
# more, longer than a kernel of its own. Each sum was bent by 47 instructions, each bias waited for, and meanwhile nobody in the block multiplied.
# Now it is 14 instructions, biases are fetched before the products, and all takes 181 µs. cuBLAS and a kernel for GELU behind it take 212.
#
# ## The gate
# Llama's network has three weights. One of two products is bent by SiLU and becomes the *gate* of the other:
#
# $$ h = \text{silu}(x\, W_g^T) \cdot (x\, W_u^T), \qquad \text{silu}(z) = \frac{z}{1 + e^{-z}} $$
#
# This is *SwiGLU*: GLU is a gated linear unit, and Swish is another name of SiLU. The second weight is called *up*; the third one, *down*,
# is the old $W_2$.
#
# Two products with one *x*, and of each pair of sums one number is left. If the same thread has both sums, half as much is written, and
# the tile of *x* is read once for both.
#
# **Write** the loop that adds to both sums, and the epilogue. `__expf` is there.

# %% solution="gated"
%%cuda --name product_gated
// x (rows, depth), gate and up (cols, depth), y (rows, cols). Blocks of 16 x 16.
__global__ void product_gated(const float* x, const float* gate, const float* up, float* y, int rows, int cols, int depth) {
    __shared__ float x_tile[16][17], gate_tile[16][17], up_tile[16][17];
    const int row = blockIdx.y * 16 + threadIdx.y, col = blockIdx.x * 16 + threadIdx.x;
    float gate_sum = 0.0f, up_sum = 0.0f;
    for (int first = 0; first < depth; first += 16) {
        const int k = first + threadIdx.x, w_row = blockIdx.x * 16 + threadIdx.y;
        const bool inside = w_row < cols && k < depth;
        x_tile[threadIdx.y][threadIdx.x] = row < rows && k < depth ? x[row * depth + k] : 0.0f;
        gate_tile[threadIdx.y][threadIdx.x] = inside ? gate[w_row * depth + k] : 0.0f;
        up_tile[threadIdx.y][threadIdx.x] = inside ? up[w_row * depth + k] : 0.0f;
        __syncthreads();
        // BEGIN SOLUTION
        for (int i = 0; i < 16; ++i) {
            gate_sum += x_tile[threadIdx.y][i] * gate_tile[threadIdx.x][i];
            up_sum += x_tile[threadIdx.y][i] * up_tile[threadIdx.x][i];
        }
        // END SOLUTION
        __syncthreads();
    }
    // BEGIN SOLUTION
    if (row < rows && col < cols) y[row * cols + col] = gate_sum / (1.0f + __expf(-gate_sum)) * up_sum;
    // END SOLUTION
}

# %%
def my_product_gated(x, gate, up):
    y = torch.empty(len(x), len(gate), device=x.device)
    product_gated((blocks(len(gate), 16), blocks(len(x), 16)), (16, 16), (x, gate, up, y, len(x), len(gate), x.shape[1]))
    return y


def gated_reference(x, gate, up):
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


mistakes = {
    "that with gate and up exchanged": lambda x, gate, up: gated_reference(x, up, gate),
    "without the sigmoid": lambda x, gate, up: F.linear(x, gate) * F.linear(x, up),
    "the gate's SiLU alone": lambda x, gate, up: F.silu(F.linear(x, gate)),
}

# %% tests="gated" points=3
cases = [{"x": (s, k), "gate": (n, k), "up": (n, k)} for s, n, k in [(1, 1, 1), (5, 33, 7), (20, 40, 19)]]
lk.check_against(gated_reference, my_product_gated, cases, mistakes=mistakes)
size = {"x": (32, 16), "gate": (32, 16), "up": (32, 16)}                 # four blocks: each row is read by two of them
lk.check_counters(gated_reference, my_product_gated, size, bytes_at_most=1.65);

# %% [markdown]
# Is the tile of *x* really read once for both? The profiler counts what the kernel asks of memory, here beside two launches of your first kernel:

# %%
x, gate, up, bias = random(64, 128), random(96, 128), random(96, 128), torch.zeros(96, device=device)
y, grid, block = torch.empty(64, 96, device=device), (6, 4), (16, 16)
twice = [lk.profile(product_gelu, grid, block, (x, w, bias, y, 64, 96, 128)) for w in (gate, up)]
once = lk.profile(product_gated, grid, block, (x, gate, up, y, 64, 96, 128))
counters = ["global_load_requests", "global_load_bytes", "global_store_bytes"]
pandas.DataFrame({name: {"two products": sum(getattr(p, name) for p in twice), "gated": getattr(once, name)} for name in counters})

# %% [markdown]
# A quarter of the loads was *x*, read a second time, and half of the stores was a matrix that nobody needs.
#
# The gate saves more than GELU did. PyTorch's four steps (two products, SiLU, times) write three hidden matrices that your kernel does not, and
# read them again: 0.11 ms for 4096 tokens, of the 1.6 that an H200 takes for all.
#
# ## One kernel for both products?
# Could the second product begin where the first one ends, and the hidden matrix never be in memory? Every number of *y* needs *all* hidden
# numbers of its token. But a block can compute a *slice* of the hidden columns, and then that slice's *share* of every number of *y*. The
# shares are added up at the end:

# %%
lk.draw.ffn_slices()

# %% [markdown]
# **Predict.** 128 blocks, nearly one for each of an H200's 132 multiprocessors, have 86 hidden columns each. Shares are float32. How many bytes of
# shares are written for 1 token of 4096 numbers, and how many for 4096 tokens? Both weights are 180 MB in bfloat16. Where can one kernel
# pay: for `"one"` token or for `"many"`?

# %% solution="predict-shares"
one_token = many_tokens = pays_for = None
### BEGIN SOLUTION
one_token = 128 * 4096 * 4
many_tokens = 128 * 4096 * 4096 * 4
pays_for = "one"
### END SOLUTION

# %% tests="predict-shares" points=1
lk.check_prediction("ffn shares", one_token, many_tokens, pays_for)

# %% [markdown]
# For 4096 tokens the shares are 8.6 GB, 95 times the hidden matrix that they were to save.
#
# Or a block takes 128 tokens, goes through all slices, and keeps the sums of *y* until the end? 128 x 4096 sums in float32 are 2 MB, and the
# registers of a multiprocessor hold a quarter of one. With fewer tokens a block, the weights are read too often. With thousands of tokens,
# two kernels it is.
#
# For one token the shares are 2 MB, one percent of the weights. All weights are read in one launch, with no gap between the products in which
# nobody reads. A second, small kernel adds up the shares.
#
# **Write** the first one, for one token. A block has `slice` hidden columns, one for each of its threads; `hidden` is in shared memory.
#
# 1. Each thread computes its hidden number and puts it into `hidden`: its row of `w1` times *x*, plus the bias, then `gelu`, which is given.
#    A thread past the last row puts 0. Then all wait.
# 2. Thread *t* has the columns *t*, *t* + `slice` and so on of *y*. For each it writes the share to `shares[blockIdx.x * embed + col]`: the sum
#    over this block's hidden numbers, number *h* of all times `w2[col * ffn + h]`.

# %% solution="single"
%%cuda
__device__ float gelu(float z) { return 0.5f * z * (1.0f + tanhf(0.7978845608f * (z + 0.044715f * z * z * z))); }

// x (embed,), w1 (ffn, embed), b1 (ffn,), w2 (embed, ffn), shares (gridDim.x, embed). slice is blockDim.x, at most 256.
__global__ void ffn_shares(const float* x, const float* w1, const float* b1, const float* w2, float* shares, int embed, int ffn) {
    __shared__ float hidden[256];
    const int slice = blockDim.x, first = blockIdx.x * slice;
    // BEGIN SOLUTION
    const int own = first + threadIdx.x;
    float sum = 0.0f;
    if (own < ffn) {
        for (int k = 0; k < embed; ++k) sum += x[k] * w1[own * embed + k];
        sum = gelu(sum + b1[own]);
    }
    hidden[threadIdx.x] = sum;
    __syncthreads();
    for (int col = threadIdx.x; col < embed; col += slice) {
        float share = 0.0f;
        for (int i = 0; i < min(slice, ffn - first); ++i) share += hidden[i] * w2[col * ffn + first + i];
        shares[blockIdx.x * embed + col] = share;
    }
    // END SOLUTION
}

__global__ void add_shares(const float* shares, float* y, int count, int embed) {
    const int col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= embed) return;
    float sum = 0.0f;
    for (int share = 0; share < count; ++share) sum += shares[share * embed + col];
    y[col] = sum;
}

# %%
small = 0.1          # weights as small as those of a trained network


def my_single_ffn(x, w1, b1, w2, slice):
    ffn, embed = w1.shape
    count = blocks(ffn, slice)
    shares, y = torch.empty(count, embed, device=x.device), torch.empty(embed, device=x.device)
    ffn_shares(count, slice, (x, small * w1, b1, small * w2, shares, embed, ffn))
    add_shares(blocks(embed, 128), 128, (shares, y, count, embed))
    return y


def ffn_reference(x, w1, b1, w2, slice):
    return F.linear(F.gelu(F.linear(x, small * w1, b1), approximate="tanh"), small * w2)


def case(embed, ffn, slice):
    return {"x": (embed,), "w1": (ffn, embed), "b1": (ffn,), "w2": (embed, ffn), "slice": slice}


mistakes = {
    "without the bias": lambda x, w1, b1, w2, slice: ffn_reference(x, w1, 0 * b1, w2, slice),
    "without GELU": lambda x, w1, b1, w2, slice: F.linear(F.linear(x, small * w1, b1), small * w2),
    "the share of the first block alone": lambda x, w1, b1, w2, slice: ffn_reference(x, w1[:slice], b1[:slice], w2[:, :slice], slice),
}

# %% tests="single" points=4
lk.check_against(ffn_reference, my_single_ffn, [case(1, 1, 4), case(9, 20, 8), case(24, 17, 16), case(10, 25, 8)], mistakes=mistakes);

# %% [markdown]
# Neighbouring threads read `w1` a whole row apart here. The package's kernels for a few tokens read long pieces of rows instead. They do without
# shares, too: all blocks meet between the products, and the hidden row does go through memory, 22 KB of it. What matters is that
# the first pieces of $W_2$ are on their way while the blocks wait for each other. So the stream of weights does not stop.
#
# ## The ladder
# SwiGLU in bfloat16, weights of 4096 x 11008, from one token to 4096. `v6_rows` and `v6_boxes` are the kernels for a few tokens,
# `v6_two_kernels` is `v6_boxes` with a gap between the products. With a GPU all are measured now; without one you see what an H200 has recorded.

# %%
shown = [name for name in lk.ops["ffn"].variants if name not in ("v5_split", "v7_tf32")]    # which are for float32
lk.bench("ffn", [*shown, "torch", "torch.compile"], dtype="bfloat16", activation="swiglu", tokens=[1, 16, 512, 4096])

# %% [markdown]
# On the H200 `v6_boxes` takes one token in 69 µs, 85% of the limit. The gap between two launches costs 10 µs, and with 78 they are still ahead of
# PyTorch's compiler. `v6_rows` is a failure: there threads copy the weights, and do not keep up with the copy engine.
#
# From 512 tokens on the products decide. `v4_hopper` has the gate in their epilogue, the compiler in a kernel of its own behind them: `v4_hopper`
# takes 3% less time for 512 tokens, 8% less for 4096.
#
# ## A published table, run again
# A fused network in float32 with GELU is said to be 1.51 to 1.68 times as fast as PyTorch's three operations, on an RTX 3090, for 512 to 4096
# tokens. Between the products there is not that much to win. But in float32 the products themselves can be made faster. Tensor cores (lab 07)
# multiply 16-bit numbers many times as fast as other cores multiply float32. `v5_split` writes each float32 as a sum of two 16-bit numbers,
# high and low. Three products of them (low times low is too small to matter) replace one product of float32. The halves need memory.

# %%
from labkernels.lab.published import published

others = published("ffn_rtx3090").iloc[0]
table = lk.bench("ffn", dtype="float32", activation="gelu", tokens=[512, 1024, 2048, 4096])
rows = table.frame
ours = rows[rows["kind"] == "ours"].sort_values("ms").groupby("tokens").head(1).set_index("tokens").sort_index()
eager = rows[rows["variant"] == "torch"].set_index("tokens")
print("ours and PyTorch's three operations:", table.source)
pandas.DataFrame({
    "published, lowest and highest": [f"{others.lowest_speedup} to {others.highest_speedup}"] * len(ours),
    "ours": ours["variant"].where(ours["ms"].notna(), "not recorded"),
    "times as fast as PyTorch": (eager["ms"] / ours["ms"]).map("{:.2f}".format).replace("nan", "not recorded"),
    "times PyTorch's memory": (ours["peak_mb"] / eager["peak_mb"]).map("{:.2f}".format).replace("nan", "not recorded"),
})

# %% [markdown]
# On the H200 it is 2.9 to 4.5 times as fast, and needs 190 to 250 MB more. Fusing alone would not do: `v2_fused` multiplies in float32, fuses, takes
# a third less memory than PyTorch, and more than twice its time.
#
# A few tokens in float32 have a kernel of their own, `v7_tf32`. It streams weights as `v6_boxes` does, and multiplies in halves: 16 tokens of SwiGLU take
# 196 µs, PyTorch's compiler 311.
#
# ## As a layer
# `FusedFFN` is all of it with gradients. Gate and up are one matrix, one below the other: one product instead of two.

# %%
torch.manual_seed(seed)
layer = lk.nn.FusedFFN(24, 64, activation="swiglu", bias=False).to(device)
x = random(tokens, 24)
gate, up = layer.gate_up_proj.weight.chunk(2)
by_hand = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), layer.down_proj.weight)
print("as PyTorch computes it:", torch.allclose(layer(x), by_hand, atol=1e-5))
layer(x).sum().backward()
print("gradients:", {name: tuple(p.grad.shape) for name, p in layer.named_parameters()})

# %% [markdown]
# ## Still wasted
# - **The second product's start.** With many tokens it waits until the whole hidden matrix is there, though its first rows have long been done.
# - **Memory in training.** The sums before GELU are kept for the way back. They could be computed again.
# - **Precision.** The weights are read in 16 bits. Lab 10 reads them in four.
#
# What would you add next? And a question: the shares are added up by a second kernel. What would it take for the last block that is done to
# do it, and would the result still be the same each time?
