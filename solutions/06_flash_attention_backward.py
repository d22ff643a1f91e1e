# %% [markdown]
# # 06 Flash attention, backward
# To train a model, gradients must flow back through attention. PyTorch knows how if every step of the forward pass is kept. Flash
# attention has kept nothing of size N x N, and that was its point.
#
# So the backward pass computes again what the forward pass has thrown away. This lab derives the three gradients, and you write
# the two kernels that compute them.
#
# You need lab 05.

# %% tags=["parameters"] again={"seed": 7, "tokens": 77}
seed = 0
tokens = 100         # of the examples; odd sizes welcome

# %%
%load_ext labkernels
import math

import torch

import labkernels as lk

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(seed)


def blocks(count, size):
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


# %% [markdown]
# ## What flows back
# Attention is a product, a softmax and a product. For one head, with *P* the weights and *O* the output:
#
# $$ S = \text{scale}\; Q K^T, \qquad P = \text{softmax}(S), \qquad O = P\,V $$
#
# Somewhere behind it there is a loss, one number. Write *dX* for its gradient: a matrix of the shape of *X*, which says for each
# element of *X* how fast the loss grows with it. The layer behind hands us *dO*. We owe *dQ*, *dK* and *dV*.

# %%
lk.draw.attention_gradients()

# %% [markdown]
# One rule does most of it. If *C = A B*, then
#
# $$ dA = dC\; B^T, \qquad dB = A^T\, dC $$
#
# No other arrangement of the two has the right shape. The last product gives two gradients, the first one two more:
#
# $$ dV = P^T\, dO, \qquad dP = dO\; V^T, \qquad dQ = \text{scale}\; dS\; K, \qquad dK = \text{scale}\; dS^T\, Q $$
#
# What is missing is the step from *dP* to *dS*, through the softmax.
#
# ## Back through a softmax
# Take one row: weights *p*, and their gradient *dp*. A score that rises takes weight from all others, for the weights sum to 1. So
# what counts is not how large $dp_j$ is, but how much larger than the average $\delta$, each taken with its weight:
#
# $$ \delta = \sum_i p_i\, dp_i, \qquad ds_j = p_j\,(dp_j - \delta) $$

# %%
lk.draw.softmax_gradient()

# %% [markdown]
# *Why.* From $p_j = e^{s_j} / \sum_i e^{s_i}$ it follows that $p_i$ grows with $s_j$ at the rate $p_i\,(1 - p_i)$ if *i* is *j*, and
# $-p_i\,p_j$ if it is not. Times $dp_i$, summed over *i*: $p_j\,dp_j - p_j \sum_i p_i\,dp_i$.
#
# **Predict.** The weights are 0.25 and 0.75, their gradients 4 and 8. What are the two gradients of the scores?

# %% solution="predict-softmax"
first_ds = second_ds = None
### BEGIN SOLUTION
average = 0.25 * 4 + 0.75 * 8
first_ds = 0.25 * (4 - average)
second_ds = 0.75 * (8 - average)
### END SOLUTION

# %% tests="predict-softmax" points=1
lk.check_prediction("softmax gradient", first_ds, second_ds)

# %% [markdown]
# Their sum is 0: adding the same number to all scores changes no weight.
#
# **Write** it in PyTorch, for all rows of *p* at once; `keepdim=True` in a sum over the last axis lets you subtract it from each row.

# %% solution="softmax-backward"
def softmax_backward(p, dp):
    """The gradient of the scores, from the weights p (a row sums to 1) and the weights' gradient dp."""
    ### BEGIN SOLUTION
    delta = (p * dp).sum(-1, keepdim=True)
    return p * (dp - delta)
    ### END SOLUTION


# %%
def my_softmax_gradient(scores, dp):
    return softmax_backward(scores.softmax(-1), dp)


def softmax_gradient(scores, dp):
    """What autograd makes of it."""
    with torch.enable_grad():
        scores = scores.detach().requires_grad_()
        return torch.autograd.grad(scores.softmax(-1), scores, dp)[0]


def with_plain_average(scores, dp):
    return scores.softmax(-1) * (dp - dp.mean(-1, keepdim=True))


mistakes = {
    "p times dp, without what is taken from the other weights": lambda scores, dp: scores.softmax(-1) * dp,
    "off by the plain average of dp; each dp counts with its weight": with_plain_average,
}

# %% tests="softmax-backward" points=2
sizes = [(5, 9), (33, 70)]
lk.check_against(softmax_gradient, my_softmax_gradient, [{"scores": size, "dp": size} for size in sizes], mistakes=mistakes);

# %% [markdown]
# ## Keep it or compute it again
# All four products want *P* or *dS*, which comes from *P*. The forward pass had every weight in registers for a moment. It could have
# written them down.
#
# **Predict.** 16384 tokens, 32 heads of 128, bfloat16. How many bytes would *P* take, of all heads? And if we compute the scores again
# from q and k instead: how many FLOPs is that product?

# %% solution="predict-keep"
p_bytes = again_flops = None
### BEGIN SOLUTION
p_bytes = 32 * 16384 * 16384 * 2
again_flops = 32 * 16384 * 16384 * 128 * 2
### END SOLUTION

# %% tests="predict-keep" points=1
lk.check_prediction("keeping the weights", p_bytes, again_flops)

# %% [markdown]
# An H200's data sheet has 4.8 TB/s, and 989 TFLOP/s of bfloat16. *P* is written once and read once:

# %%
print(f"write P and read it      {2 * p_bytes / 4.8e12 * 1000:4.1f} ms, {p_bytes / 1e9:.0f} GB a layer")
print(f"compute the scores again {again_flops / 989e12 * 1000:4.1f} ms, nothing kept")

# %% [markdown]
# By these numbers it is cheaper to compute than to remember. And every layer of a model would have to remember until its turn comes.
#
# From scores to weights it takes the row's maximum *m* and sum *s*, which the forward pass had at its end. One number does for both,
# the row's *log-sum-exp* or *lse*:
#
# $$ p_j = \frac{e^{s_j - m}}{s} = e^{s_j - \text{lse}}, \qquad \text{lse} = m + \ln s $$
#
# ## The average, without the weights
# The average $\delta$ is a sum over a whole row, again. Must the backward pass walk over all keys once to find it, and once more to use
# it? Look at what is summed. $dp_j$ is the product of *dO*'s row with $v_j$, so
#
# $$ \delta = \sum_j p_j\,(dO \cdot v_j) = dO \cdot \sum_j p_j\, v_j = dO \cdot O $$
#
# The output is that sum already. So $\delta$ is a row of *dO* times a row of *O*, and is known before any tile is touched.

# %%
def forward(q, k, v, causal, scale):
    """What flash attention leaves behind: output and log-sum-exp. q, k, v and output are (heads, tokens, 32)."""
    out, lse = lk.functional.attention(q[None], k[None], v[None], causal, scale, return_lse=True)
    return out[0], lse[0]


q, k, v, grad = (torch.randn(2, tokens, 32, generator=generator).to(device) for _ in range(4))
out, lse = forward(q, k, v, causal=False, scale=0.2)
p = (0.2 * q @ k.mT).softmax(-1)
delta = (p * (grad @ v.mT)).sum(-1)        # from two matrices of tokens x tokens
delta_again = (grad * out).sum(-1)         # from two of tokens x 32
print("the same:", torch.allclose(delta, delta_again, atol=1e-4))

# %% [markdown]
# So each query brings two numbers along, *lse* and $\delta$. With them any weight and any *ds* can be computed alone, from its own row
# of q and *dO* and its own row of k and v:
#
# $$ p = e^{\text{scale}\; q \cdot k - \text{lse}}, \qquad ds = p\,(dO \cdot v - \delta) $$
#
# No maximum moves and nothing is rescaled. In that the backward pass is the easier one.
#
# ## A block of keys
# $dV = P^T\,dO$ says: the gradient of a value is the sum over all *queries* of weight times *dO*'s row. The forward pass gave a block
# its queries, and the keys walked by. Now a block has keys of its own, and the queries walk by.

# %%
lk.draw.gradient_walks()

# %% [markdown]
# Left, the walk for *dK* and *dV*: their rows stay in registers until the walk ends. Each thread has one key: its rows of k and v, and
# the sums `dk_row` and `dv_row`. A tile of queries is in shared memory, with *dO*, *lse* and $\delta$. It is copied for you. Queries past
# the end are zeros there, their *dO* too, so they add nothing.
#
# **Write** what the thread does with query `i` of the tile:
#
# 1. Compute the score, `q_tile[i]` times `k_row`, and `dp`, `grad_tile[i]` times `v_row`.
# 2. Compute the weight. It is 0 where the query may not see the key: under a causal mask, where the key comes later.
# 3. Compute *ds*, and add to both sums. Mind the scale: it is a factor of the score, and then of *dK*.

# %% solution="key-gradients"
%%cuda --name key_gradients -D HEAD_DIM=32 -D KEYS=64 -D QUERIES=16
// q, k, v, grad, dk and dv are (heads, tokens, 32); lse and delta (heads, tokens).
__global__ void key_gradients(const float* q, const float* k, const float* v, const float* grad, const float* lse,
                              const float* delta, float* dk, float* dv, int tokens, bool causal, float scale) {
    __shared__ float q_tile[QUERIES][HEAD_DIM], grad_tile[QUERIES][HEAD_DIM], lse_tile[QUERIES], delta_tile[QUERIES];
    const int first_key = blockIdx.x * KEYS, key = first_key + threadIdx.x, head = blockIdx.y * tokens;
    float k_row[HEAD_DIM], v_row[HEAD_DIM], dk_row[HEAD_DIM] = {}, dv_row[HEAD_DIM] = {};
    for (int d = 0; d < HEAD_DIM; ++d) {
        k_row[d] = key < tokens ? k[(head + key) * HEAD_DIM + d] : 0.0f;
        v_row[d] = key < tokens ? v[(head + key) * HEAD_DIM + d] : 0.0f;
    }

    // with a causal mask the first query that sees a key of this block is the block's first
    for (int first = causal ? first_key : 0; first < tokens; first += QUERIES) {
        for (int i = threadIdx.x; i < QUERIES * HEAD_DIM; i += KEYS) {
            const int row = i / HEAD_DIM, d = i % HEAD_DIM;
            const bool inside = first + row < tokens;
            q_tile[row][d] = inside ? q[(head + first + row) * HEAD_DIM + d] : 0.0f;
            grad_tile[row][d] = inside ? grad[(head + first + row) * HEAD_DIM + d] : 0.0f;
        }
        if (threadIdx.x < QUERIES) {
            const bool inside = first + threadIdx.x < tokens;
            lse_tile[threadIdx.x] = inside ? lse[head + first + threadIdx.x] : 0.0f;
            delta_tile[threadIdx.x] = inside ? delta[head + first + threadIdx.x] : 0.0f;
        }
        __syncthreads();
        for (int i = 0; i < QUERIES; ++i) {
            const int query = first + i;
            // BEGIN SOLUTION
            float score = 0.0f, dp = 0.0f;
            for (int d = 0; d < HEAD_DIM; ++d) {
                score += q_tile[i][d] * k_row[d];
                dp += grad_tile[i][d] * v_row[d];
            }
            const bool visible = !causal || key <= query;
            const float p = visible ? __expf(scale * score - lse_tile[i]) : 0.0f;
            const float ds = p * (dp - delta_tile[i]);
            for (int d = 0; d < HEAD_DIM; ++d) {
                dk_row[d] += scale * ds * q_tile[i][d];
                dv_row[d] += p * grad_tile[i][d];
            }
            // END SOLUTION
        }
        __syncthreads();
    }

    if (key < tokens) {
        for (int d = 0; d < HEAD_DIM; ++d) {
            dk[(head + key) * HEAD_DIM + d] = dk_row[d];
            dv[(head + key) * HEAD_DIM + d] = dv_row[d];
        }
    }
}

# %%
def saved_rows(q, k, v, grad, causal, scale):
    """lse and delta of each query, by the definition."""
    scores = scale * q @ k.mT
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    return scores.logsumexp(-1), (grad * (scores.softmax(-1) @ v)).sum(-1)


def my_key_gradients(q, k, v, grad, causal, scale):
    """dk and dv, one above the other."""
    heads, tokens, _ = q.shape
    lse, delta = saved_rows(q, k, v, grad, causal, scale)
    dk_dv = torch.empty(2, *q.shape, device=q.device)
    args = (q, k, v, grad, lse, delta, dk_dv[0], dk_dv[1], tokens, causal, scale)
    key_gradients((blocks(tokens, 64), heads), 64, args)
    return dk_dv


def autograd(q, k, v, grad, causal, scale):
    """dq, dk and dv by autograd."""
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        scores = scale * q @ k.mT
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
        return torch.stack(torch.autograd.grad(scores.softmax(-1) @ v, (q, k, v), grad))


def without_scale(*inputs):
    return autograd(*inputs) / torch.tensor([inputs[-1], inputs[-1], 1.0], device=inputs[0].device)[:, None, None, None]


def case(heads, tokens, causal, scale):
    return dict.fromkeys(("q", "k", "v", "grad"), (heads, tokens, 32)) | {"causal": causal, "scale": scale}


cases = [case(1, 1, False, 0.2), case(2, 33, True, 0.2), case(1, 70, False, 0.1), case(2, 131, True, 0.15)]


def gradients_of_keys(q, k, v, grad, causal, scale):
    return autograd(q, k, v, grad, causal, scale)[1:]


mistakes = {
    "right for dv; dk lacks the factor `scale`": lambda q, k, v, grad, causal, scale: (
        without_scale(q, k, v, grad, causal, scale)[1:]),
    "that of attention without a causal mask": lambda q, k, v, grad, causal, scale: (
        autograd(q, k, v, grad, False, scale)[1:]),
}

# %% tests="key-gradients" points=4
lk.check_against(gradients_of_keys, my_key_gradients, cases, mistakes=mistakes);

# %% [markdown]
# In the result, axis 0 counts dk and dv, then come heads, tokens and head_dim. Two of the three gradients are done.

# %%
key_gradients.resources("sm_90a")

# %% [markdown]
# The four rows of a thread are 128 numbers, for a `head_dim` of only 32. The forward pass had two rows. Registers are what the backward
# pass is short of.
#
# ## Whose is dQ?
# $dQ = \text{scale}\; dS\; K$ sums over *keys*, and your block has 64 of them. What it knows is its own share of every query's *dq*. There
# are two ways out, and you saw both in the picture.
#
# - **Add.** Every block adds its share to `dq` in memory, with `atomicAdd`. The scores, *dp* and *ds* are computed once.
# - **Walk again.** A second kernel, in which a block has queries, and keys walk by as in the forward pass. It computes the scores, *dp*
#   and *ds* once more.
#
# **Predict.** Count products of N x N x head_dim; *q kᵀ* is one, *p v* another, so the forward pass has 2. How many does the backward
# pass have in one kernel that adds, and how many in two kernels? And which gradient's last bits may differ from run to run if blocks
# add whenever they are ready: `"dq"`, `"dk"` or `"dv"`?

# %% solution="predict-walks"
one_kernel = two_kernels = differs = None
### BEGIN SOLUTION
one_kernel = 5           # scores, dp, dv, dk, dq
two_kernels = 7          # scores, dp, dv, dk; scores, dp, dq
differs = "dq"           # blocks add to it in any order
### END SOLUTION

# %% tests="predict-walks" points=2
lk.check_prediction("backward products", one_kernel, two_kernels, differs)

# %% [markdown]
# Order matters, because float32 rounds after each addition:

# %%
shares = torch.randn(8, tokens, 32, generator=generator)      # of 8 blocks of keys
forwards, backwards = shares[0], shares[7]
for block in range(1, 8):
    forwards, backwards = forwards + shares[block], backwards + shares[7 - block]
print(f"{(forwards != backwards).float().mean():.0%} of the sums are other numbers in the other order")
print("none by more than 0.00001:", bool((forwards - backwards).abs().max() <= 1e-5))

# %% [markdown]
# No gradient is wrong by that. But the same training run does not give the same model twice, and who hunts a bug wants that it does.
# That mode is called *deterministic*: blocks wait for their turn to add, in a fixed order, or the second kernel is used.
#
# ## A block of queries
# The second kernel, then. A thread has one query: its rows of q and *dO*, its *lse* and $\delta$, and `dq_row`. Tiles of keys and values
# come by. **Write** the body of the loop, all of it this time:
#
# 1. Copy the tile, together, as in lab 05; zeros from key `tokens` on.
# 2. Wait; add `scale * ds * k` for each key of the tile that the query may see; wait.
#
# Does a key past the end need a test of its own? Its row of k is zero.

# %% solution="query-gradients"
%%cuda --name query_gradients -D HEAD_DIM=32 -D QUERIES=64 -D KEYS=16
__global__ void query_gradients(const float* q, const float* k, const float* v, const float* grad, const float* lse,
                                const float* delta, float* dq, int tokens, bool causal, float scale) {
    __shared__ float k_tile[KEYS][HEAD_DIM], v_tile[KEYS][HEAD_DIM];
    const int first_query = blockIdx.x * QUERIES, query = first_query + threadIdx.x, head = blockIdx.y * tokens;
    float q_row[HEAD_DIM], grad_row[HEAD_DIM], dq_row[HEAD_DIM] = {};
    for (int d = 0; d < HEAD_DIM; ++d) {
        q_row[d] = query < tokens ? q[(head + query) * HEAD_DIM + d] : 0.0f;
        grad_row[d] = query < tokens ? grad[(head + query) * HEAD_DIM + d] : 0.0f;
    }
    const float own_lse = query < tokens ? lse[head + query] : 0.0f;
    const float own_delta = query < tokens ? delta[head + query] : 0.0f;

    const int end = causal ? min(tokens, first_query + QUERIES) : tokens;
    for (int first = 0; first < end; first += KEYS) {
        // BEGIN SOLUTION
        for (int i = threadIdx.x; i < KEYS * HEAD_DIM; i += QUERIES) {
            const int j = i / HEAD_DIM, d = i % HEAD_DIM;
            const bool inside = first + j < tokens;
            k_tile[j][d] = inside ? k[(head + first + j) * HEAD_DIM + d] : 0.0f;
            v_tile[j][d] = inside ? v[(head + first + j) * HEAD_DIM + d] : 0.0f;
        }
        __syncthreads();
        for (int j = 0; j < KEYS; ++j) {
            float score = 0.0f, dp = 0.0f;
            for (int d = 0; d < HEAD_DIM; ++d) {
                score += q_row[d] * k_tile[j][d];
                dp += grad_row[d] * v_tile[j][d];
            }
            const bool visible = !causal || first + j <= query;
            const float p = visible ? __expf(scale * score - own_lse) : 0.0f;
            const float ds = p * (dp - own_delta);
            for (int d = 0; d < HEAD_DIM; ++d) dq_row[d] += scale * ds * k_tile[j][d];
        }
        __syncthreads();
        // END SOLUTION
    }

    if (query < tokens) {
        for (int d = 0; d < HEAD_DIM; ++d) dq[(head + query) * HEAD_DIM + d] = dq_row[d];
    }
}

# %%
def my_query_gradients(q, k, v, grad, causal, scale):
    heads, tokens, _ = q.shape
    lse, delta = saved_rows(q, k, v, grad, causal, scale)
    dq = torch.empty_like(q)
    query_gradients((blocks(tokens, 64), heads), 64, (q, k, v, grad, lse, delta, dq, tokens, causal, scale))
    return dq


def gradient_of_queries(q, k, v, grad, causal, scale):
    return autograd(q, k, v, grad, causal, scale)[0]


mistakes = {
    "right but for the factor `scale`": lambda q, k, v, grad, causal, scale: (
        without_scale(q, k, v, grad, causal, scale)[0]),
    "that of attention without a causal mask": lambda q, k, v, grad, causal, scale: (
        autograd(q, k, v, grad, False, scale)[0]),
}

# %% tests="query-gradients" points=4
lk.check_against(gradient_of_queries, my_query_gradients, cases, mistakes=mistakes);

# %% [markdown]
# ## All of it, for autograd
# A `torch.autograd.Function` says what to keep and how to go back. Look at what it keeps: the inputs, the output, and one number a row.

# %%
class MyAttention(torch.autograd.Function):
    @staticmethod
    def forward(context, q, k, v, causal, scale):
        out, lse = forward(q, k, v, causal, scale)
        context.save_for_backward(q, k, v, out, lse)
        context.options = causal, scale
        return out

    @staticmethod
    def backward(context, grad):
        q, k, v, out, lse = context.saved_tensors
        causal, scale = context.options
        heads, tokens, _ = q.shape
        grad = grad.contiguous()
        delta = (grad * out).sum(-1)
        dq, dk, dv = (torch.empty_like(q) for _ in range(3))
        grid, rows = (blocks(tokens, 64), heads), (q, k, v, grad, lse, delta)
        key_gradients(grid, 64, (*rows, dk, dv, tokens, causal, scale))
        query_gradients(grid, 64, (*rows, dq, tokens, causal, scale))
        return dq, dk, dv, None, None


leaves = [x.clone().requires_grad_() for x in (q, k, v)]
loss = (MyAttention.apply(*leaves, True, 0.2) * grad).sum()
loss.backward()
exact = autograd(*(x.double() for x in (q, k, v, grad)), True, 0.2)
for name, leaf, want in zip(("dq", "dk", "dv"), leaves, exact):
    error = (leaf.grad.double() - want).norm() / want.norm()
    print(f"{name}: relative error below 1e-6: {bool(error < 1e-6)}")

# %% [markdown]
# PyTorch can train through it, and nothing of size N x N was ever made.
#
# ## The ladder
# Your kernels multiply on float32 units, a number at a time, and so does the first rung of this package's ladder. Those above it put
# the products on tensor cores. With a GPU all are measured now; without one you see what an H200 has recorded.

# %%
lk.bench("attention_backward", dtype="bfloat16").plot()

# %%
lk.ops["attention_backward"].variants

# %% [markdown]
# ## Float32 on tensor cores
# Tensor cores multiply *halves*, floats of 16 bits that keep 11 binary digits. Float32 keeps 24: nearly what a sum of two halves does, a
# high and a low one. So *a b* = (high + low) (high + low), where low times low is too small to matter.
#
# **Predict.** How many products of halves is one of float32, then? `v2_tensor_cores` reaches 287 TFLOP/s for 2048 tokens of bfloat16. What
# would it reach if each of its products were so many? The float32 units that PyTorch's `efficient` multiplies on have given it 36.

# %% solution="predict-halves"
products = split_tflops = None
### BEGIN SOLUTION
products = 3             # high high, high low, low high
split_tflops = 287 / 3
### END SOLUTION

# %% tests="predict-halves" points=1
lk.check_prediction("float32 from halves", products, split_tflops)

# %%
lk.bench("attention_backward", ["v1_plain", "v4_split", "efficient"], dtype="float32", seq_len=[512, 1024, 2048, 4096]).plot()

# %% [markdown]
# On the H200 `efficient` takes 2.9 times as long as `v4_split` for 2048 tokens, 4.72 ms against 1.64 ms, with errors of the same size. The
# dashed limit is that of float32 units, which `v4_split` does not multiply on.
#
# Halves end at 65504. *P* is at most 1, but how large *ds* becomes is not known beforehand, so each warp's tile of it gets a scale. That
# costs nothing: tensor cores cut off digits of long sums, so each tile's are added to float32 registers anyway, and an FMA scales them
# while it adds.
#
# ## Still wasted
# - **Products computed twice.** 7, where 5 would do. A fast kernel adds to *dq* from the blocks of keys, and pays with atomics, or with
#   turns where the order must be fixed.
# - **Registers.** With two sums to keep and two rows to hold, 128 columns do not fit in a thread. A warp can share a row, as in lab 05.
# - **The arithmetic itself.** All five products are of tiles, which tensor cores multiply: in `v2_tensor_cores`, `v3_hopper` and `v4_split`.
# - **Heads that share keys.** With grouped heads several heads of q have the same k and v: their gradients are sums over the group, which
#   a block of keys can walk through, one head after the other.
#
# What would you add next? And a question: *lse* is minus infinity for a query that may see no key. What does `exp(score - lse)` give
# then, and what should it?
