# %% [markdown]
# # 09 Small kernels
# Between the large products of a transformer stand dozens of small operations: norms, sums, rotations, activations. Their arithmetic
# is next to nothing. They cost what they move through memory, and PyTorch moves most of it more than once.
#
# This lab writes three of them so that nothing moves twice: a norm, its way back, and the rotation that tells attention where a token
# stands.
#
# You need lab 02, and the idea of a gradient from lab 06.

# %% tags=["parameters"] again={"seed": 7, "tokens": 21}
seed = 0
tokens = 12          # of the examples; odd sizes welcome

# %%
%load_ext labkernels
import math

import torch

import labkernels as lk

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(seed)


def random(*shape):
    return torch.randn(shape, generator=generator).to(device)


def blocks(count, size):
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


# %% [markdown]
# ## Bytes are the price
# Deep models stay trainable because each layer first brings its input to a common size. *RMSNorm* divides a row by the root of its mean
# square, and multiplies each column by a learned weight:
#
# $$ y_j = x_j\, r\, w_j, \qquad r = \frac{1}{\sqrt{\frac{1}{n} \sum_i x_i^2 + \varepsilon}} $$
#
# The small number $\varepsilon$ keeps a row of zeros from a division by zero. In PyTorch's words:
# `x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight`. Each step is a kernel, which reads a tensor from memory and writes one there.
#
# Four steps are large: `x * x`, the mean, `x * r` and `* weight`.
#
# **Predict.** Leave out what a whole row or a whole column shares: the means, *r* and the weight. How many bytes an element do the four large
# steps move in float32, and how many does one kernel that reads *x* once and writes *y* once? After an attention layer the layer's input, the
# *residual*, is added first: the norm is taken of `x + residual`, and that sum is needed later, too. How many bytes then, in one kernel?

# %% solution="predict-trips"
four_kernels = one_kernel = with_residual = None
### BEGIN SOLUTION
four_kernels = (4 + 4) + 4 + (4 + 4) + (4 + 4)    # x * x; mean; x * r; * weight
one_kernel = 4 + 4
with_residual = 2 * 4 + 2 * 4                     # x and residual; sum and y
### END SOLUTION

# %% tests="predict-trips" points=1
lk.check_prediction("norm bytes", four_kernels, one_kernel, with_residual)

# %%
lk.draw.norm_trips()

# %% [markdown]
# ## A row in registers
# The sum over a row must be known before the first element of *y* can be written. To read *x* only once, it has to wait somewhere. A row
# of 1024 floats is 32 for each lane of a warp: that fits in registers.
#
# **Write** the norm of a row of at most 1024, by one warp. A block is four warps, so four rows.
#
# 1. Lane *l* keeps the columns *l*, *l* + 32, *l* + 64 and so on in `kept`, zeros past the end.
# 2. Squares are summed by the lane, then by the warp, as in lab 02: `__shfl_xor_sync(0xffffffff, sum, distance)`.
# 3. All lanes know *r*, and write. `rsqrtf` is one over the root.
#
# Loops over `kept` go from 0 to 32 with the bound written out. Then the compiler unrolls them, each `kept[i]` is a register, and
# none of it is an array in memory.

# %% solution="rms-norm"
%%cuda --name rms_norm
#define FULL 0xffffffff
__global__ void rms_norm(const float* x, const float* weight, float* y, int rows, int cols, float eps) {
    const int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    float kept[32];
    // BEGIN SOLUTION
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        const int col = 32 * i + lane;
        kept[i] = col < cols ? x[row * cols + col] : 0.0f;
        sum += kept[i] * kept[i];
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(FULL, sum, distance);
    const float r = rsqrtf(sum / cols + eps);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        const int col = 32 * i + lane;
        if (col < cols) y[row * cols + col] = kept[i] * r * weight[col];
    }
    // END SOLUTION
}

# %%
def rms_norm_reference(x, weight, eps):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def my_rms_norm(x, weight, eps):
    y = torch.empty_like(x)
    rms_norm(blocks(len(x), 4), 128, (x, weight, y, *x.shape, eps))
    return y


mistakes = {
    "right but for eps": lambda x, weight, eps: rms_norm_reference(x, weight, 0.0),
    "divided by the root of the sum of squares; it is their mean": lambda x, weight, eps: (
        x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps) * weight),
    "not multiplied by the weight": lambda x, weight, eps: rms_norm_reference(x, 1.0, eps),
}

# %% tests="rms-norm" points=4
sizes = [(1, 1), (3, 33), (9, 100), (5, 1024)]
lk.check_against(rms_norm_reference, my_rms_norm, [{"x": (r, c), "weight": (c,), "eps": 0.1} for r, c in sizes], mistakes=mistakes);
lk.check_counters(rms_norm_reference, my_rms_norm, {"x": (16, 512), "weight": (512,), "eps": 0.1}, bytes_at_most=1.55);

# %% [markdown]
# The counters allow each row its own look at the weight, which is small and comes from the cache, but no second look at *x*.
#
# What is this worth? With a GPU all versions are measured now; without one you see what an H200 has recorded. `torch` is PyTorch's own
# `F.rms_norm`, `liger` is a library of kernels for training, `flashinfer` one for servers.

# %%
lk.bench("rms_norm").plot()

# %% [markdown]
# The top of the ladder reads 16 bytes at a time, and gives a long row to a whole block. The limit is the time in which a copy would move
# the same bytes: a norm is a copy with some arithmetic on the way. Others know that, too. On an H200 `v4_packed` is first with 2048 and 4096
# columns, 66 µs against Liger's 67; with 8192 PyTorch's compiler is 2% ahead of it.
#
# ## The way back
# Training needs the gradients of *x* and of the weight, *dx* and *dw*, from that of the result, *dy*. Write $\hat x_j = x_j\, r$ for the row
# before its weight. *dw* collects from all rows; *dx* stays in its row:
#
# $$ dw_j = \sum_{\text{rows}} dy_j\, \hat x_j, \qquad dx_j = r\,\Big(g_j - \hat x_j \cdot \frac{1}{n}\sum_i g_i\, \hat x_i\Big), \qquad g_j = w_j\, dy_j $$
#
# *Why.* If *r* were a constant, $dx_j$ would be $r\,g_j$. But $x_j$ changes *r*, and *r* changes the whole row:
#
# $$ \frac{\partial r}{\partial x_j} = -\frac{r^3 x_j}{n} = -\frac{r^2\, \hat x_j}{n}, \qquad
# dr = \sum_i g_i\, x_i = \frac{1}{r} \sum_i g_i\, \hat x_i $$
#
# (*dr* is the gradient of *r*.) Their product is the second term. It takes away the part of *g* that points along $\hat x$: the norm has removed
# the row's size, so (but for $\varepsilon$) no gradient is left along it.
#
# **Write** both in PyTorch, for all rows at once.

# %% solution="norm-backward"
def rms_norm_gradients(x, weight, dy, eps):
    """(dx, dweight)"""
    r = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    ### BEGIN SOLUTION
    normed, g = x * r, weight * dy
    dx = r * (g - normed * (g * normed).mean(-1, keepdim=True))
    return dx, (dy * normed).sum(0)
    ### END SOLUTION


# %%
def by_autograd(x, weight, dy, eps):
    """dx, and below it dweight as one more row."""
    with torch.enable_grad():
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        dx, dweight = torch.autograd.grad(rms_norm_reference(x, weight, eps), (x, weight), dy)
    return torch.cat([dx, dweight[None]])


def my_gradients(x, weight, dy, eps):
    dx, dweight = rms_norm_gradients(x, weight, dy, eps)
    return torch.cat([dx, dweight[None]])


def without_size(x, weight, dy, eps):
    exact = by_autograd(x, weight, dy, eps).clone()
    exact[:-1] = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight * dy
    return exact


mistakes = {"right for the weight; dx lacks what the row's size takes away": without_size}

# %% tests="norm-backward" points=2
sizes = [(1, 3), (5, 33), (40, 64)]
cases = [{"x": (r, c), "weight": (c,), "dy": (r, c), "eps": 0.1} for r, c in sizes]
lk.check_against(by_autograd, my_gradients, cases, mistakes=mistakes);

# %% [markdown]
# ## Sums over all rows
# *dx* is one kernel more like the first. *dw* is another matter: it adds up all rows, thousands of them, and many blocks have a part of them.
# Could each add its rows to one `dweight` with `atomicAdd` (lab 02)? The sum would be right, but its last bits could differ from run to run,
# for nobody knows in what order the blocks come. In two kernels the order is fixed:

# %%
lk.draw.partial_sums()

# %% [markdown]
# **Write** the first kernel. Its blocks have as many threads as there are columns, up to 1024: a thread has a column, or several, 1024
# apart; that loop is given. Block *b* takes the rows *b*, *b* + `gridDim.x` and so on, and writes one row of sums of
# `dy * x * r`. *r* has been kept from the way forward, a number a row. The second kernel is given.

# %% solution="partial-sums"
%%cuda
// x, dy (rows, cols); r (rows,); partial (gridDim.x, cols)
__global__ void partial_sums(const float* x, const float* dy, const float* r, float* partial, int rows, int cols) {
    for (int col = threadIdx.x; col < cols; col += blockDim.x) {
        // BEGIN SOLUTION
        float sum = 0.0f;
        for (int row = blockIdx.x; row < rows; row += gridDim.x) sum += dy[row * cols + col] * x[row * cols + col] * r[row];
        partial[blockIdx.x * cols + col] = sum;
        // END SOLUTION
    }
}

__global__ void weight_gradient(const float* partial, float* dweight, int parts, int cols) {
    const int col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    float sum = 0.0f;
    for (int part = 0; part < parts; ++part) sum += partial[part * cols + col];
    dweight[col] = sum;
}

# %%
def my_weight_gradient(x, dy, r):
    rows, cols = x.shape
    parts = min(rows, 6)          # on a GPU: as many as there are multiprocessors
    partial, dweight = torch.empty(parts, cols, device=x.device), torch.empty(cols, device=x.device)
    partial_sums(parts, min(cols, 1024), (x, dy, r, partial, rows, cols))
    weight_gradient(blocks(cols, 256), 256, (partial, dweight, parts, cols))
    return dweight


def of_one_block(x, dy, r):
    return (dy * x * r[:, None])[::6].sum(0)


mistakes = {
    "what block 0 alone adds up": of_one_block,
    "the sum of dy times x, without r": lambda x, dy, r: (dy * x).sum(0),
}

# %% tests="partial-sums" points=3
cases = [{"x": (r, c), "dy": (r, c), "r": (r,)} for r, c in [(1, 1), (5, 33), (20, 64), (13, 1100)]]
lk.check_against(lambda x, dy, r: (dy * x * r[:, None]).sum(0), my_weight_gradient, cases, mistakes=mistakes);
lk.check_counters(lambda x, dy, r: (dy * x * r[:, None]).sum(0), my_weight_gradient, {"x": (48, 256), "dy": (48, 256), "r": (48,)},
                  bytes_at_most=1.6);

# %% [markdown]
# The few partial rows are written and read again; large tensors are read once. In the package's version the same kernel computes *dx* as well,
# since it has the rows in hand: *x* and *dy* are read once for both.

# %%
lk.bench("rms_norm_backward").plot()

# %% [markdown]
# `v1_naive` has one thread for each column, which adds up all 16384 rows alone. On an H200 that takes 7 ms, with 2048 columns or with 8192: there
# is room for many times as many threads.
#
# ## Where a token stands
# Attention compares a query with keys, and would not notice if those keys, with their values, changed places. *RoPE*, the rotary position
# embedding, tells it: before the comparison, queries and keys are cut into pairs of numbers, and each pair is turned like a hand of a clock. The
# angle is its token's position times a frequency. The first pairs turn fast, the last ones hardly at all. (Grey is the pair before; angles are in
# radians.)

# %%
lk.draw.rope_turns()

# %% [markdown]
# $$ \begin{pmatrix} a' \\ b' \end{pmatrix} = \begin{pmatrix} a \cos\theta - b \sin\theta \\ b \cos\theta + a \sin\theta \end{pmatrix},
# \qquad \theta = \text{position} \cdot f_i, \qquad f_i = 10000^{-2i/d} $$
#
# The pair is (*a*, *b*), its number *i* is 0, 1, 2 and so on, and *d* is the length of a query.
#
# When two arrows are turned by the same angle, the angle between them stays. So a query's product with a key depends on how far apart
# the two tokens are, not on where they stand:

# %%
def frequencies(head_dim, base=10_000.0):
    return base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def rope_reference(x, f, first):
    """x (heads, tokens, head_dim); the first token stands at position `first`. Pairs are (i, i + head_dim / 2)."""
    theta = (torch.arange(x.shape[1], device=x.device) + first)[:, None] * f
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * theta.cos() - b * theta.sin(), b * theta.cos() + a * theta.sin()], dim=-1)


q, k = random(1, tokens, 32), random(1, tokens, 32)
f = frequencies(32).to(device)
scores = [rope_reference(q, f, first) @ rope_reference(k, f, first).mT for first in (0, 500)]
print("500 tokens later, the same scores:", torch.allclose(*scores, atol=1e-3))

# %% [markdown]
# **Predict.** In PyTorch's words above, count the steps that pass over *x*: four products, a difference, a sum, and the `cat`, each on
# halves of *x* or on all of it. How many bytes does a float32 element of *x* cost (the cosines are small: leave them out)? How many in
# one kernel? And by what angle must the *gradient* of the result be turned, to become that of *x*: `"theta"` or `"-theta"`?

# %% solution="predict-rope"
steps_bytes = kernel_bytes = angle_back = None
### BEGIN SOLUTION
steps_bytes = 4 * (2 + 2) + 2 * (4 + 2) + (4 + 4)    # a product: half is read, half is written; a sum: two halves are read, one written
kernel_bytes = 4 + 4
angle_back = "-theta"                                # the transposed matrix turns back
### END SOLUTION

# %% tests="predict-rope" points=1
lk.check_prediction("rope bytes", steps_bytes, kernel_bytes, angle_back)

# %% [markdown]
# **Write** the kernel. A thread has one pair: elements `i` and `i + half` of a row of `head_dim = 2 * half`. `pair` counts the pairs of all
# rows; rows are tokens of one head, then of the next. `sincosf(angle, &sine, &cosine)` computes both.

# %% solution="rope"
%%cuda --name rope
__global__ void rope(const float* x, const float* frequencies, float* y, int pairs, int tokens, int half, int first) {
    const int pair = blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= pairs) return;
    // BEGIN SOLUTION
    const int row = pair / half, i = pair % half, position = first + row % tokens;
    float sine, cosine;
    sincosf(position * frequencies[i], &sine, &cosine);
    const float a = x[row * 2 * half + i], b = x[row * 2 * half + half + i];
    y[row * 2 * half + i] = a * cosine - b * sine;
    y[row * 2 * half + half + i] = b * cosine + a * sine;
    // END SOLUTION
}

# %%
def my_rope(x, f, first):
    y, half = torch.empty_like(x), x.shape[-1] // 2
    pairs = x.numel() // 2
    rope(blocks(pairs, 256), 256, (x, f, y, pairs, x.shape[1], half, first))
    return y


def neighbours(x, f, first):
    halves = torch.cat([x[..., ::2], x[..., 1::2]], dim=-1)
    turned = rope_reference(halves, f, first)
    return torch.stack(turned.chunk(2, dim=-1), dim=-1).flatten(-2)


mistakes = {
    "turned the other way": lambda x, f, first: rope_reference(x, -f, first),
    "that of neighbouring elements as pairs; here they are half a row apart": neighbours,
    "as if every head began where the last one ended": lambda x, f, first: (
        rope_reference(x.reshape(1, -1, x.shape[-1]), f, first).view(x.shape)),
    "as if the first token stood at 0": lambda x, f, first: rope_reference(x, f, 0),
}

# %% tests="rope" points=3
cases = [{"x": (h, t, d), "f": (d // 2,), "first": first} for h, t, d, first in [(1, 1, 2, 1), (2, 5, 8, 0), (3, 7, 16, 3)]]
lk.check_against(rope_reference, my_rope, cases, mistakes=mistakes);

# %% [markdown]
# In the package's ladder, `v1_naive` is like yours: a thread for each pair. The top turns 16 bytes at a time, and computes a sine once for
# several heads of a token:

# %%
lk.bench("rope").plot()

# %% [markdown]
# On an H200, PyTorch's separate steps take 15 to 20 times as long as a copy. `v1_naive` moves no byte twice, and yet takes five times as
# long: 2 bytes at a time, and each of 40 heads (32 of queries, 8 of keys) computes the same sines again. With both mended, little is left.
#
# ## Still wasted
# - **The trip itself.** *q* and *k* come from a product, are turned, and go to attention. A product's epilogue could turn them, a cache's
#   writer could: `qkv_rope_cache` in this package does bias, rotation and the write into the cache in one.
# - **A sum of its own.** After a layer comes a residual sum and the next layer's norm: `add_rms_norm` is both.
# - **Launches.** With one token at a time a norm of this lab reads a row, 8 KB for 4096 numbers of 16 bits, and takes as long as its launch.
#   Then what counts is how many there are.
#
# What would you add next? And a question: position 100 000 times frequency 0.9 is an angle of 90 000. Near it, float32 numbers are 0.008 apart,
# so the product is rounded. How exact is its sine, and what could you do?
