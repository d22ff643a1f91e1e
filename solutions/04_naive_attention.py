# %% [markdown]
# # 04 Naive attention
# A language model reads *tokens*, words or pieces of words. Attention lets every token look at the others. It is two matrix
# products with a softmax between them, and what stands between them is a matrix with one number for every *pair* of tokens.
#
# In this lab you write attention in CUDA C++ as its formula stands, three kernels, and count what that matrix costs. The
# next lab makes it disappear.
#
# You need threads and what a warp reads (lab 01) and softmax with one warp a row (lab 02).

# %% tags=["parameters"] again={"seed": 7, "tokens": 7, "earlier_tokens": 2}
seed = 0
tokens = 6             # of the small examples that we look at
earlier_tokens = 3     # that were read before

# %%
%load_ext labkernels
import math

import torch

import labkernels as lk

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(seed)


def random(*shape):
    return torch.randn(*shape, generator=generator).to(device)


# %% [markdown]
# ## Every token asks
# Each token comes with three vectors of `head_dim` numbers. Its *query* says what it looks for, its *key* what it can be
# found by, its *value* what it hands over. Stacked, they are three matrices, one row a token.

# %%
lk.draw.attention_products()

# %% [markdown]
# The dot product of a query and a key is a *score*: how well the two fit. Softmax makes each row of scores into *weights*
# that add up to 1. The output of a token is the sum of all values, each times its weight.
#
# $$ S = \frac{q\,k^T}{\sqrt{d}}, \qquad P = \mathrm{softmax}(S)\ \text{row by row}, \qquad O = P\,v $$
#
# The factor $1 / \sqrt{d}$, with $d$ the `head_dim`, is called the *scale*. It keeps the scores of long vectors as small as
# those of short ones. In PyTorch all this takes three lines.

# %%
head_dim = 64
q, k, v = random(tokens, head_dim), random(tokens, head_dim), random(tokens, head_dim)

scores = q @ k.T / math.sqrt(head_dim)
weights = torch.softmax(scores, dim=-1)
output = weights @ v

lk.draw.attention_weights(weights)

# %% [markdown]
# One row is one query. Row 0 shows how much token 0 takes from each token; where a square is dark, it takes a lot.
#
# ## Who may see whom
# A language model learns to guess the next token, so no token may see those that come after it. That is the *causal mask*. A
# hidden score becomes `-inf`, and since `exp(-inf)` is 0 its weight is 0.
#
# A second mask hides *padding*. Several sentences make a *batch*; the shorter ones are filled up with tokens that mean
# nothing.

# %%
lk.draw.attention_masks()

# %% [markdown]
# The middle one is the one that kernels get wrong. While a model writes, it keeps the keys of the tokens it has read, and only
# the new tokens ask: fewer queries than keys. The last query belongs to the last key, so the staircase ends in the *bottom
# right* corner.
#
# **Predict.** 10 queries, 16 keys, causal. How many keys does query 3 see, counted from 0? And how many of the 160 pairs
# are visible in all?

# %% solution="predict-mask"
keys_of_query_3 = visible_pairs = None
### BEGIN SOLUTION
keys_of_query_3 = 3 + (16 - 10) + 1
visible_pairs = sum(query + (16 - 10) + 1 for query in range(10))
### END SOLUTION

# %% tests="predict-mask" points=1
lk.check_prediction("causal mask", keys_of_query_3, visible_pairs)

# %% [markdown]
# ## The matrix in the middle
# A model does this many times side by side: each of its *heads* has queries, keys and values of its own, and a batch holds
# several sentences. So q, k and v have the shape `(batch, heads, seq, head_dim)`, and the scores have the shape
# `(batch, heads, seq, seq)`.
#
# **Predict.** 4 sentences of 8192 tokens, 32 heads of 64, everything in float32 (4 bytes). How many bytes is q? How many
# are the scores?

# %% solution="predict-bytes"
bytes_of_q = bytes_of_scores = None
### BEGIN SOLUTION
bytes_of_q = 4 * 32 * 8192 * 64 * 4
bytes_of_scores = 4 * 32 * 8192 * 8192 * 4
### END SOLUTION

# %% tests="predict-bytes" points=1
lk.check_prediction("score matrix bytes", bytes_of_q, bytes_of_scores)

# %%
lk.draw.attention_memory(heads=32, head_dim=64)

# %% [markdown]
# One step to the right doubles the tokens. The grey line then doubles too. The scores take four times as much, since both of
# their sides have doubled.
#
# **Predict**, with a formula or from the picture: the largest number of tokens whose scores fit into 141 GB, for one
# sentence and 32 heads. Within 10% is right.

# %% solution="predict-longest"
longest = None
### BEGIN SOLUTION
longest = int(math.sqrt(141e9 / (32 * 4)))
### END SOLUTION

# %% tests="predict-longest" points=1
lk.check_prediction("longest naive sequence", longest)

# %% [markdown]
# ## Write the scores
# One thread computes one score. Blocks of 32 x 8 threads cover the matrix: `x` counts keys, `y` counts queries. The thread
# reads one row of q and one row of k.

# %%
lk.draw.score_threads()

# %% [markdown]
# The grid's third axis, `z`, counts the heads of all sentences: `z = batch * heads + head`.
#
# There is one more thing to know. Many models let several query heads share the keys and values of one head, so that there
# are fewer keys and values to keep. That is *grouped-query attention*.

# %%
lk.draw.grouped_heads(heads=8, kv_heads=2)

# %% [markdown]
# A *group* is how many query heads share one: 4 here. Query head `h` reads key head `h / group`, in whole numbers. Counted
# through all sentences it is the same division: `z` reads the keys of `z / group`.
#
# **Write** the kernel. There are `seq_len` queries and `kv_len` keys. Element (z, query, key) of the scores is the scaled
# product, or `-CUDART_INF_F` where the query may not see the key. All tensors are *contiguous*: head after head, row after row,
# without gaps. So head `z` of q begins at `z * seq_len * head_dim`, and of k and v there are fewer heads. Mind the threads that
# stick out.

# %% solution="scores"
%%cuda --name attention_scores
#include <math_constants.h>    // CUDART_INF_F

__global__ void attention_scores(const float* q, const float* k, float* scores, int seq_len,
                                 int kv_len, int head_dim, int group, bool causal, float scale) {
    const int key = blockIdx.x * blockDim.x + threadIdx.x;
    const int query = blockIdx.y * blockDim.y + threadIdx.y;
    // batch * heads + head; an int, of 32 bits, could not count 32 * 8192 * 8192 scores
    const long long z = blockIdx.z;
    // BEGIN SOLUTION
    if (query >= seq_len || key >= kv_len) return;
    const float* q_row = q + (z * seq_len + query) * head_dim;
    const float* k_row = k + (z / group * kv_len + key) * head_dim;
    float dot = 0.0f;
    for (int d = 0; d < head_dim; ++d) dot += q_row[d] * k_row[d];
    const bool visible = !causal || key <= query + kv_len - seq_len;
    scores[(z * seq_len + query) * kv_len + key] = visible ? scale * dot : -CUDART_INF_F;
    // END SOLUTION
}

# %% [markdown]
# Your kernel makes the scores, PyTorch does the rest for now. The check compares the result with float64 for many shapes:
# one token, odd lengths, earlier keys, shared heads, large numbers. The sanitizer looks at every access first.

# %%
def blocks(count, size):
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


def make_scores(q, k, causal, scale):
    batch, heads, seq_len, head_dim = q.shape
    kv_heads, kv_len = k.shape[1:3]
    scores = torch.empty(batch, heads, seq_len, kv_len, device=q.device)
    grid = (blocks(kv_len, 32), blocks(seq_len, 8), batch * heads)
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    group = heads // kv_heads
    args = (q.contiguous(), k.contiguous(), scores, seq_len, kv_len, head_dim, group, causal, scale)
    attention_scores(grid, (32, 8), args)
    return scores


def scores_then_pytorch(q, k, v, causal=False, scale=None):
    weights = torch.softmax(make_scores(q, k, causal, scale), dim=-1)
    return weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


# %% tests="scores" points=3
lk.check("attention", scores_then_pytorch, dtypes=["float32"], head_dim=64, seeds=[0]);

# %% [markdown]
# **See** what your kernel hides: `tokens` new tokens with `earlier_tokens` before them, and two query heads that share one
# key head. The staircase should end in the corner.

# %%
q, k = random(1, 2, tokens, head_dim), random(1, 1, tokens + earlier_tokens, head_dim)
weights = torch.softmax(make_scores(q, k, causal=True, scale=None), dim=-1)
lk.draw.attention_weights(weights[0], ["query head 0", "query head 1"])

# %% [markdown]
# ## Write the softmax, with padding
# The softmax of a row is lab 02's: find the maximum, sum `exp(score - max)`, divide. What is new is the padding. Only the first
# `lengths[b]` keys of sentence `b` are its own. The scores after them are garbage, and their weights must be 0.
#
# A row may also be hidden as a whole. Where the padding stands *before* the sentence, its tokens see nothing at all. What is
# the softmax of such a row?

# %%
torch.softmax(torch.tensor([-math.inf, -math.inf]), dim=0)

# %% [markdown]
# `-inf - -inf` is not a number, and whatever it is added to is not one either. Let us agree on zeros: who sees nothing takes
# nothing.
#
# **Write** it, in place: the weights take the place of the scores, in all `kv_len` columns. `warp.cuh` has what you know from
# lab 02: `warp_max` and `warp_sum` combine one value a lane, and every lane gets the result. The lanes of a warp walk over the
# row together: `lane_id()`, `lane_id() + 32`, ...

# %% solution="softmax"
%%cuda --name attention_softmax
#include <math_constants.h>
#include "warp.cuh"

// One warp a row. `lengths` has one number a sentence, and each sentence has heads * seq_len rows.
__global__ void attention_softmax(float* scores, const int* lengths, long long rows,
                                  int rows_per_sentence, int kv_len) {
    const long long row = blockIdx.x * (blockDim.x / 32LL) + warp_id();
    if (row >= rows) return;
    const int length = lengths[row / rows_per_sentence];
    scores += row * kv_len;
    // BEGIN SOLUTION
    float max = -CUDART_INF_F;
    for (int key = lane_id(); key < length; key += 32) max = fmaxf(max, scores[key]);
    max = warp_max(max);
    if (max == -CUDART_INF_F) max = 0.0f;    // all is hidden: exp(-inf - 0) is 0, exp(-inf - -inf) is not

    float sum = 0.0f;
    for (int key = lane_id(); key < length; key += 32) sum += __expf(scores[key] - max);
    sum = warp_sum(sum);

    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int key = lane_id(); key < kv_len; key += 32) {
        scores[key] = key < length ? __expf(scores[key] - max) * factor : 0.0f;
    }
    // END SOLUTION
}

# %% [markdown]
# This is what is wanted, in PyTorch. To make it hard, one query is hidden from every key, and the padding is large.

# %%
def make_weights(scores, lengths):
    batch, heads, seq_len, kv_len = scores.shape
    rows = batch * heads * seq_len
    lengths = torch.tensor(lengths, dtype=torch.int32, device=scores.device)
    attention_softmax(blocks(rows, 4), 128, (scores, lengths, rows, heads * seq_len, kv_len))
    return scores


def made_hard(scores, lengths):
    """A copy in which query 0 is hidden from every key, and the padding holds large garbage."""
    scores = scores.clone()
    scores[:, :, 0] = -math.inf
    for sentence, length in enumerate(lengths):
        scores[sentence, :, :, length:] = 1e4
    return scores


def wanted(scores, lengths):
    """The weights, with 0 for padding and for what is hidden."""
    key = torch.arange(scores.shape[-1], device=scores.device)
    padding = key >= torch.tensor(lengths, device=scores.device)[:, None, None, None]
    weights = torch.softmax(made_hard(scores, lengths).masked_fill(padding, -math.inf), dim=-1)
    return weights.nan_to_num(0.0)


def my_softmax(scores, lengths):
    return make_weights(made_hard(scores, lengths), lengths)


# %% tests="softmax" points=3
cases = [
    {"scores": (2, 1, 3, 5), "lengths": [5, 2]},
    {"scores": (3, 2, 4, 33), "lengths": [33, 7, 0]},
    {"scores": (2, 3, 9, 100), "lengths": [64, 99]},
]
lk.check_against(wanted, my_softmax, cases);

# %% [markdown]
# ## Write the output
# The second product: an element of the output is the sum of a column of values, each times its weight. One thread an
# element, `x` counts `d`, `y` queries, `z` heads as before.
#
# Neighbouring threads have neighbouring `d`. Before you write, ask what lab 01 would: where do the threads of a warp read v,
# and where do they read the weights?

# %% solution="output"
%%cuda --name attention_output
__global__ void attention_output(const float* weights, const float* v, float* output,
                                 int seq_len, int kv_len, int head_dim, int group) {
    const int d = blockIdx.x * blockDim.x + threadIdx.x;
    const int query = blockIdx.y * blockDim.y + threadIdx.y;
    const long long z = blockIdx.z;
    if (query >= seq_len || d >= head_dim) return;
    // BEGIN SOLUTION
    const float* weight_row = weights + (z * seq_len + query) * kv_len;
    const float* v_column = v + z / group * kv_len * head_dim + d;
    float sum = 0.0f;
    for (int key = 0; key < kv_len; ++key) sum += weight_row[key] * v_column[key * head_dim];
    output[(z * seq_len + query) * head_dim + d] = sum;
    // END SOLUTION
}

# %% [markdown]
# A warp's 32 threads share a query. So they read one weight, the same for all: 1 sector. And of v they read 32 neighbours in a
# row: 4 sectors, nothing wasted.
#
# Three kernels in a row, no PyTorch left between them: this is attention, and it is yours. The check now takes every
# `head_dim`, odd ones too.

# %%
def my_attention(q, k, v, causal=False, scale=None):
    """softmax(q k^T * scale) v, in three kernels, with the matrix of scores in memory between them."""
    batch, heads, seq_len, head_dim = q.shape
    kv_heads, kv_len = k.shape[1:3]
    scores = make_scores(q, k, causal, scale)
    weights = make_weights(scores, lengths=[kv_len] * batch)
    output = torch.empty(q.shape, device=q.device)
    grid = (blocks(head_dim, 32), blocks(seq_len, 8), batch * heads)
    args = (weights, v.contiguous(), output, seq_len, kv_len, head_dim, heads // kv_heads)
    attention_output(grid, (32, 8), args)
    return output


# %% tests="output" points=2
lk.check("attention", my_attention, dtypes=["float32"], seeds=[0]);

# %% [markdown]
# ## Count
# Before any stopwatch, count. Take one sentence of 4096 tokens with 32 heads of 64, no mask, and assume the best: a kernel
# reads each byte of its inputs once and writes each byte of its result once.
#
# **Predict.** How many bytes of *scores* do the three kernels move together? How many FLOPs are the two products, a
# multiplication and an addition counting as 2?

# %% solution="predict-traffic"
score_bytes_moved = product_flops = None
### BEGIN SOLUTION
pairs = 32 * 4096 * 4096
score_bytes_moved = pairs * 4 * 4        # written by scores, read and written by softmax, read by output
product_flops = pairs * 64 * 2 * 2
### END SOLUTION

# %% tests="predict-traffic" points=1
lk.check_prediction("naive attention traffic", score_bytes_moved, product_flops)

# %%
lk.draw.score_traffic(seq=4096, heads=32)

# %% [markdown]
# q, k, v and the output are 134 MB together: next to the scores they hardly count. The ratio is what matters, and it is the
# same at any length: both grow with the pairs.

# %%
pairs = 32 * 4096 * 4096
flops, score_bytes = 4 * 64 * pairs, 16 * pairs
others = 4 * 32 * 4096 * 64 * 4
print(f"{flops / score_bytes:.0f} FLOPs for each byte of scores")
print(f"{flops / others:.0f} FLOPs for each byte of q, k, v and output")

# %% [markdown]
# How many would keep an H200 busy? Its data sheet says: 4.8 TB/s from memory, 67 TFLOP/s of float32, and 989 TFLOP/s of
# bfloat16 on its tensor cores, the units that multiply whole matrices.

# %%
print(f"float32: {67 / 4.8:.0f} FLOPs a byte, bfloat16 on tensor cores: {989 / 4.8:.0f} FLOPs a byte")

# %% [markdown]
# In float32 the scores would keep memory about as busy as the products keep the arithmetic units. Tensor cores would wait for
# the scores, and faster ones would only wait longer.
#
# ## Measure
# The ladder's first rungs are what you wrote: `v1_naive` in Numba CUDA, not recorded at 8192 tokens, and `v1_naive_cuda` in
# CUDA C++. `math` is PyTorch's own, with the same matrix in memory, and products from a tuned library. `efficient`, also
# PyTorch's, keeps no matrix.

# %%
lk.bench("attention", ["v1_naive", "v1_naive_cuda", my_attention, "math", "efficient"], head_dim=64).plot()

# %% [markdown]
# Look at the slopes first. From 1024 tokens on, every line climbs about four times for each doubling, with or without the
# matrix: each query still meets each key.
#
# Then look at the heights, at 4096 tokens. How long should the matrix alone take?

# %%
print(f"{score_bytes / 1e9:.1f} GB of scores at 4.8 TB/s: {score_bytes / 4.8e12 * 1e3:.1f} ms")

# %% [markdown]
# The dashed limit is what the arithmetic alone would take. `math` pays for the matrix on top of it, `efficient` does not.
# Our own kernels take many times longer than arithmetic and matrix together, so they wait for something else. For what?
# Count what the threads of `attention_scores` *ask* for.
#
# **Predict.** The same 4096 tokens and 32 heads of 64. How many bytes of q and k do all threads of `attention_scores` ask for
# together, counting every read? How many are q and k?

# %% solution="predict-asked"
bytes_asked = bytes_there = None
### BEGIN SOLUTION
bytes_asked = 32 * 4096 * 4096 * (64 + 64) * 4     # each score: a row of q and a row of k
bytes_there = 2 * 32 * 4096 * 64 * 4
### END SOLUTION

# %% tests="predict-asked" points=1
lk.check_prediction("bytes asked for", bytes_asked, bytes_there)

# %% [markdown]
# Every row is asked for 4096 times. The caches answer most of it, but not for free, and neighbouring threads make it worse.
# They have neighbouring keys, so they read k 256 bytes apart: 32 sectors for 32 numbers (lab 01).
#
# ## Still wasted
# - **Reads.** 512 bytes are asked for to make one score, which is 128 FLOPs.
# - **The matrix.** 16 bytes moved for every pair, and memory that grows with the square of the length.
# - **Hidden pairs.** Under a causal mask half of the scores are computed, stored, read, and multiplied as zeros.
# - **Tensor cores.** The products run on ordinary float32 units.
#
# One observation opens the next lab. The output of a query takes its scores one after the other, and each only once. If
# softmax did not have to know the maximum before it begins, no score would have to be kept. Lab 02 has shown that it need
# not.
#
# What would you add next?
