# %% [markdown]
# # 05 Flash attention
# In lab 04 attention wrote one number for every pair of tokens to memory, read it, wrote it and read it again. This lab
# computes the same output and never stores that matrix.
#
# Two ideas are enough. The running pair of lab 02 learns to carry the output along. Then a block of queries shares what it
# reads. Together they are flash attention (Dao et al., 2022). You write a kernel for the first, then one for both, and a third one
# for tensor cores.

# %% tags=["parameters"] again={"seed": 7, "queries": 70, "keys": 101}
seed = 0
queries = 100          # of the example under the sanitizer; odd sizes welcome
keys = 133

# %%
%load_ext labkernels
import dataclasses
import math

import pandas
import torch

import labkernels as lk
from labkernels.lab.published import published

device = "cuda" if torch.cuda.is_available() else "cpu"


def blocks(count, size):
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


# %% [markdown]
# ## One query, one key at a time
# Follow one query. Its scores come one by one. Of all that had come, lab 02 kept two numbers: the largest score *m*, and the
# sum *s* of `exp(score - m)`. When a larger score came, the old sum was wrong by a factor that we knew.
#
# Now each key brings a value too, a vector. We want the sum of the values, each times `exp(score - m)`. Call it *o*. It is
# measured against the same *m*, so it is wrong by the same factor.

# %%
lk.draw.accumulator()

# %% [markdown]
# Each key has a colour. A larger score shrinks all that was there before, the sum and every element of *o* alike, from the
# dashed outline to what is left. A smaller score shrinks nothing: it comes in small. With a new score *x* and value *v*:
#
# $$ m' = \max(m, x), \qquad c = e^{m - m'}, \qquad s' = c\,s + e^{x-m'}, \qquad o' = c\,o + e^{x-m'}\,v $$
#
# After the last key, $o / s$ is the output. No score has been kept.
#
# It is exact, and this is why. Before the step, *o* is the sum of $e^{x_j - m}\,v_j$ over all keys so far. Times
# $e^{m - m'}$, each term becomes $e^{x_j - m'}\,v_j$: what it would have been, had we known the larger maximum all along.
#
# **Predict.** So far m = 1, s = 1.5, and *o* begins with 2.0. A key arrives with score 3, and its value begins with 1.0.
# What is s now, and what does *o* begin with? Within 1% is right.

# %% solution="predict-rescale"
new_s = new_o = None
### BEGIN SOLUTION
correction = math.exp(1 - 3)
new_s = 1.5 * correction + 1
new_o = 2.0 * correction + 1 * 1.0
### END SOLUTION

# %% tests="predict-rescale" points=1
lk.check_prediction("rescaled accumulator", new_s, new_o)

# %% [markdown]
# ## Write the step
# One warp owns one query. `head_dim` is 64, so each of the 32 lanes holds two elements of the query and two of *o*, as a
# `float2` with members `.x` and `.y`. It has no `+` and no `*`: compute with its members. For each key the lanes multiply what
# they hold, and `warp_sum` adds it up. Every lane then has the `score`, and in `v_pair` its own two elements of the value.
#
# **Write** the step. Four numbers change, `max`, `sum`, `o.x` and `o.y`, and the order in which you change them matters.
# `max` begins with minus infinity, and `__expf(-CUDART_INF_F)` is 0.

# %% solution="online"
%%cuda --name attention_online
#include <math_constants.h>
#include "warp.cuh"    // lane_id(), warp_id(), warp_sum()

// q, k, v and out are (batch, heads, seq, 32) pairs of floats. As in lab 04, z counts the heads of
// all sentences, and `group` of them share a key head.
__global__ void attention_online(const float2* q, const float2* k, const float2* v, float2* out,
                                 int seq_len, int kv_len, int group, bool causal, float scale) {
    const int query = blockIdx.x * (blockDim.x / 32) + warp_id();
    const long long z = blockIdx.y;
    if (query >= seq_len) return;
    const float2 q_pair = q[(z * seq_len + query) * 32 + lane_id()];
    k += z / group * kv_len * 32;
    v += z / group * kv_len * 32;
    const int visible = causal ? query + kv_len - seq_len + 1 : kv_len;

    float max = -CUDART_INF_F, sum = 0.0f;
    float2 o = {0.0f, 0.0f};
    for (int key = 0; key < visible; ++key) {
        const float2 k_pair = k[key * 32 + lane_id()], v_pair = v[key * 32 + lane_id()];
        const float score = scale * warp_sum(q_pair.x * k_pair.x + q_pair.y * k_pair.y);
        // BEGIN SOLUTION
        const float new_max = fmaxf(max, score);
        const float correction = __expf(max - new_max);    // 0 at the first key, where max is -inf
        const float weight = __expf(score - new_max);
        max = new_max;
        sum = sum * correction + weight;
        o.x = o.x * correction + weight * v_pair.x;
        o.y = o.y * correction + weight * v_pair.y;
        // END SOLUTION
    }
    out[(z * seq_len + query) * 32 + lane_id()] = {o.x / sum, o.y / sum};
}

# %%
def online_attention(q, k, v, causal=False, scale=None):
    """softmax(q k^T * scale) v for a head_dim of 64, one warp a query."""
    batch, heads, seq_len, head_dim = q.shape
    kv_heads, kv_len = k.shape[1:3]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    out = torch.empty(q.shape, device=q.device)
    tensors = (q.contiguous(), k.contiguous(), v.contiguous(), out)
    args = (*tensors, seq_len, kv_len, heads // kv_heads, causal, scale)
    attention_online((blocks(seq_len, 4), batch * heads), 128, args)
    return out


# %% tests="online" points=3
lk.check("attention", online_attention, dtypes=["float32"], head_dim=64, seeds=[0]);

# %% [markdown]
# Attention in one kernel. Look for the matrix: the only memory that `online_attention` takes is `out`. Of all the keys it has
# seen, a warp remembers 64 + 2 numbers, in registers, after 10 keys and after a million.

# %%
attention_online.resources()

# %% [markdown]
# The *stack* is memory of a thread's own. No stack and no spills: all of it did fit into registers.
#
# **Predict.** One sentence of 65536 tokens, 32 heads of 64, float32. How many bytes does lab 04 allocate, scores and output
# together? How many does this kernel?

# %% solution="predict-memory"
naive_bytes = online_bytes = None
### BEGIN SOLUTION
online_bytes = 32 * 65536 * 64 * 4
naive_bytes = 32 * 65536 * 65536 * 4 + online_bytes
### END SOLUTION

# %% tests="predict-memory" points=1
lk.check_prediction("attention memory", naive_bytes, online_bytes)

# %%
lk.draw.attention_memory(heads=32, head_dim=64, flash=True)

# %% [markdown]
# At 64k tokens the orange line is above all that an H200 has. The green one grows with the number of tokens N and not with its
# square: this is what "O(N) memory" says.
#
# ## What it still reads
# Less memory is taken, but is less memory read? Each warp walks over all keys and all values, for one query.
#
# **Predict.** 4096 tokens, 32 heads of 64, no mask. How many bytes of k and v do all warps ask for together? And how many
# would it be if 64 queries shared what is read for them once?

# %% solution="predict-reads"
bytes_alone = bytes_shared = None
### BEGIN SOLUTION
bytes_alone = 32 * 4096 * 4096 * 64 * 2 * 4      # heads, queries, keys, elements, k and v, bytes
bytes_shared = bytes_alone / 64
### END SOLUTION

# %% tests="predict-reads" points=1
lk.check_prediction("bytes of k and v", bytes_alone, bytes_shared)

# %% [markdown]
# k and v together are 67 MB, and they are asked for 4096 times. The caches answer most of it, but not for free. So 64 queries
# will share.
#
# ## Tiles
# A *tile* is a few neighbouring keys with their values, 16 here. A block of 64 threads owns 64 queries, one thread a query.
# All threads together copy a tile to shared memory; then each computes with it, for its own query. The tile is read from
# memory once, and 64 times from shared memory.

# %%
lk.draw.attention_tiles()

# %% [markdown]
# The dotted frame is the matrix of lab 04. All that a block ever holds of it are the scores of one tile.
#
# Threads that share need barriers, and here the loop needs two. Nobody may compute before the tile is there: one
# `__syncthreads()` after the copy. And nobody may load the next tile over this one while a slower warp still reads it: another
# after the computing.

# %%
lk.draw.tile_barriers()

# %% [markdown]
# One more saving comes with the tile. Its 16 scores are known before their values are touched, so the thread finds the
# largest of them first and rescales *o* once for 16 keys, not once for each. The formula is the same, with $x$ the largest
# score of the tile.
#
# ## Write flash attention
# This is given: a thread has its query, already scaled, in `q_row`. It holds `o`, `max` and `sum`. It may see the keys below
# `visible`. Threads whose query lies past the end stay: they help to copy, and must reach every barrier.
#
# Every query sees key 0. So `max` is a number after the first tile, even where later tiles are hidden from a query as a whole.
#
# **Write** the body of the loop:
#
# 1. All threads together copy keys `first` to `first + KEYS - 1` of k and v into the tiles. The last tile may stick out:
#    write zeros for keys from `kv_len` on. Neighbouring threads should read neighbouring elements: number the tile's
#    `KEYS * HEAD_DIM` elements, and let thread *t* copy the elements *t*, *t* + `QUERIES`, ...
# 2. Wait.
# 3. Compute the tile's scores; a key that the query may not see gets `-CUDART_INF_F`. Find the new maximum.
# 4. Rescale `sum` and `o`, once.
# 5. For each key of the tile, add its weight to `sum`, and its weight times its value to `o`.
# 6. Wait.

# %% solution="flash"
%%cuda --name flash_attention -D HEAD_DIM=64 -D QUERIES=64 -D KEYS=16
#include <math_constants.h>

__global__ void flash_attention(const float* q, const float* k, const float* v, float* out,
                                int seq_len, int kv_len, int group, bool causal, float scale) {
    __shared__ float k_tile[KEYS][HEAD_DIM], v_tile[KEYS][HEAD_DIM];
    const int first_query = blockIdx.x * QUERIES, query = first_query + threadIdx.x;
    const long long z = blockIdx.y;
    q += (z * seq_len + query) * HEAD_DIM;
    out += (z * seq_len + query) * HEAD_DIM;
    k += z / group * kv_len * HEAD_DIM;
    v += z / group * kv_len * HEAD_DIM;

    float q_row[HEAD_DIM], o[HEAD_DIM] = {}, score[KEYS];
    for (int d = 0; d < HEAD_DIM; ++d) q_row[d] = query < seq_len ? scale * q[d] : 0.0f;
    float max = -CUDART_INF_F, sum = 0.0f;

    const int earlier = kv_len - seq_len;
    // keys that this query may see, and keys that any query of the block may see
    const int visible = causal ? min(kv_len, query + earlier + 1) : kv_len;
    const int end = causal ? min(kv_len, first_query + QUERIES + earlier) : kv_len;
    for (int first = 0; first < end; first += KEYS) {
        // BEGIN SOLUTION
        for (int i = threadIdx.x; i < KEYS * HEAD_DIM; i += QUERIES) {
            const int j = i / HEAD_DIM, d = i % HEAD_DIM;
            const bool inside = first + j < kv_len;
            k_tile[j][d] = inside ? k[(first + j) * HEAD_DIM + d] : 0.0f;
            v_tile[j][d] = inside ? v[(first + j) * HEAD_DIM + d] : 0.0f;
        }
        __syncthreads();

        float new_max = max;
        for (int j = 0; j < KEYS; ++j) {
            score[j] = 0.0f;
            for (int d = 0; d < HEAD_DIM; ++d) score[j] += q_row[d] * k_tile[j][d];
            if (first + j >= visible) score[j] = -CUDART_INF_F;
            new_max = fmaxf(new_max, score[j]);
        }

        const float correction = __expf(max - new_max);
        max = new_max;
        sum *= correction;
        for (int d = 0; d < HEAD_DIM; ++d) o[d] *= correction;

        for (int j = 0; j < KEYS; ++j) {
            const float weight = __expf(score[j] - max);
            sum += weight;
            for (int d = 0; d < HEAD_DIM; ++d) o[d] += weight * v_tile[j][d];
        }
        __syncthreads();
        // END SOLUTION
    }

    if (query < seq_len) {
        for (int d = 0; d < HEAD_DIM; ++d) out[d] = o[d] / sum;
    }
}

# %%
def my_flash_attention(q, k, v, causal=False, scale=None):
    """softmax(q k^T * scale) v for a head_dim of 64, 64 queries a block, nothing of size N x N anywhere."""
    batch, heads, seq_len, head_dim = q.shape
    kv_heads, kv_len = k.shape[1:3]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    out = torch.empty(q.shape, device=q.device)
    tensors = (q.contiguous(), k.contiguous(), v.contiguous(), out)
    args = (*tensors, seq_len, kv_len, heads // kv_heads, causal, scale)
    flash_attention((blocks(seq_len, 64), batch * heads), 64, args)
    return out


# %% tests="flash" points=5
lk.check("attention", my_flash_attention, dtypes=["float32"], head_dim=64);

# %% [markdown]
# You have written flash attention.
#
# ## See
# What is the last barrier for? Take it out of your own source, and let the sanitizer watch.

# %%
before, barrier, after = flash_attention.source.text.rpartition("__syncthreads();")
without_it = lk.Kernel(dataclasses.replace(flash_attention.source, text=before + after), "flash_attention")

generator = torch.Generator().manual_seed(seed)
q, k, v = (torch.randn(1, 1, length, 64, generator=generator) for length in (queries, keys, keys))
out = torch.empty_like(q)
lk.sanitize(without_it, (blocks(queries, 64), 1), 64, (q, k, v, out, queries, keys, 1, True, 0.125))

# %% [markdown]
# One warp writes the next tile where another still reads this one. Whether that shows in the result depends on how far apart
# the warps are, and on a GPU that changes from run to run.
#
# What does your kernel take of an H200? *Occupancy* is the share of a multiprocessor's 64 places for warps that can be filled.

# %%
resources = flash_attention.resources("sm_90a")
print(resources.occupancy(64))
resources

# %% [markdown]
# `q_row` and `o` are 128 numbers that every thread holds, and the registers show it. They leave room for few warps. While one
# warp waits for memory another can compute, so few warps mean much waiting.
#
# A register has no index. The compiler has *unrolled* the loops over `d`, that is, written out all their steps with fixed
# indices, and so `q_row` and `o` could become registers. If it has left your loops over `j` as loops, the 16 numbers of `score`
# are the 64 bytes of stack. `#pragma unroll` before those loops unrolls them too: more registers, fewer warps. Which of the
# two wins is not easy to say. With a GPU, try it; and try `-D KEYS=32`.
#
# ## Count again
# Each pair of query and key takes 2 x 64 FLOPs with the key and 2 x 64 with the value. What do the threads ask of memory and
# caches for it? In lab 04 a row of q and one of k, then a row of v, and the weight again for each of its 64 elements (the
# softmax in between left out). A warp a query: a row of k and one of v. And now each of these rows serves 64 queries.

# %%
flops_a_pair = 4 * 64
row = 64 * 4
bytes_a_pair = {"lab 04": 4 * row, "a warp a query": 2 * row, "64 queries a tile": 2 * row / 64}
for name, size in bytes_a_pair.items():
    print(f"{name:18} {size:4.0f} bytes asked for, {flops_a_pair / size:5.2f} FLOPs a byte")

print(f"an H200 can do 67 TFLOP/s of float32 and 4.8 TB/s (data sheet): {67 / 4.8:.0f} FLOPs a byte")

# %% [markdown]
# Below the last number memory cannot keep up, unless the caches help; above it arithmetic is the limit. Sharing has carried
# attention across.
#
# ## The ladder
# `v1_naive_cuda` is lab 04. `v2_online` is your first kernel of today, for any `head_dim`. `v3_tiled` has the idea of your
# second one, for 128 queries, and each of its threads computes a patch of 8 x 8 scores. `efficient` is PyTorch's own, without
# the matrix too. With a GPU all are measured now, yours among them; without one you see what an H200 has recorded.

# %%
entries = ["v1_naive_cuda", "v2_online", my_flash_attention, "v3_tiled", "efficient"]
lk.bench("attention", entries, head_dim=64).plot()

# %%
lk.ops["attention"].variants

# %% [markdown]
# On the H200 `v3_tiled` takes a little less time than PyTorch's kernel, at every length in the picture.
#
# Each rung has its reason. From v1 to v2 the matrix went, and reads became neighbours. From v2 to yours 64 queries share. From
# yours to v3 a number that comes from shared memory is used 8 times, not once.
#
# The roofline of lab 00 shows how much is left. All of them stand above one place of the axis, that of a kernel that moves q,
# k, v and the output once and nothing else. How high each stands is its own doing.

# %%
rungs = ("v1_naive_cuda", "v2_online", "v3_tiled")
lk.draw.roofline(
    {"attention, at best": (flops_a_pair * 32 * 4096**2, 4 * row * 32 * 4096)},
    ladder=[("attention", name, {"seq_len": 4096, "head_dim": 64}) for name in rungs],
)

# %% [markdown]
# ## Half-empty tiles
# Under a causal mask the loop ends at the last key that any query of the block may see. So nearly half of the tiles are never
# touched. Scores are computed in vain only along the diagonal.

# %%
lk.draw.causal_tiles()

# %% [markdown]
# **Predict.** 1024 queries and keys, causal, 64 queries a block, 16 keys a tile: 16 x 64 tiles. How many does your kernel
# visit? How many scores does it compute and then hide?

# %% solution="predict-tiles"
tiles_visited = scores_hidden = None
### BEGIN SOLUTION
tiles_visited = sum(4 * (block + 1) for block in range(16))     # 64 more keys, 4 tiles, for each block
scores_hidden = 16 * (64 * 63 // 2)                             # a triangle in each block's last 64 keys
### END SOLUTION

# %% tests="predict-tiles" points=1
lk.check_prediction("causal tiles", tiles_visited, scores_hidden)

# %%
visible = 1024 * 1025 // 2
print(f"{scores_hidden / (visible + scores_hidden):.1%} of the scores are computed in vain")
print(f"{1 - visible / 1024**2:.1%} would be, if no tile were skipped")

# %% [markdown]
# ## Parts that wait
# In your second kernel all copy, then all multiply, then all take exponentials. Memory, multipliers and the unit for exponentials are
# different parts of a multiprocessor, and most of them always wait. The upper rungs of the ladder are about that.

# %%
lk.draw.attention_schedules()

# %% [markdown]
# `v4_warp_tiles` copies with `cp.async`: a thread asks for 16 bytes to go from memory to shared memory, and goes on. So the next tile
# comes while this one is in use. And a warp owns 16 queries from their scores to their output. Its softmax needs no other warp, and
# barriers remain only where a tile changes hands.
#
# ## Scores that are weights already
# *Tensor cores* multiply small matrices. One instruction, `mma`, multiplies 16 x 16 numbers of bfloat16 with 16 x 8 and adds the
# product to 16 x 8 float32 numbers, for a warp as a whole. The matrices lie in registers, spread over the 32 lanes in a way that the
# hardware prescribes. A lane's share is called a *fragment*; lab 07 takes them apart.
#
# The first product makes scores, 16 queries by 8 keys at a time. After the softmax they are the left operand of the second product.
# Which lane has which number, before and after?

# %%
lk.draw.scores_become_weights()

# %% [markdown]
# Each cell has the number of its lane, and those of lane 9 are green: `s0` is its `score[0]`, `s1` its `score[1]`, `w` its `weight`. Before
# and after, a lane has the same eight places. So `exp`, rounding to bfloat16, two neighbours into one register, and the operand is there.
# No weight goes through shared memory or to another lane. This is what makes flash attention and tensor cores fit together.
#
# Write the lane as 4 *g* + *t*. It has four numbers of row *g* and four of row *g* + 8. `score[0]` is the left accumulator, `score[1]`
# the right one; in each, elements 0 and 1 are of row *g*, elements 2 and 3 of row *g* + 8.
#
# **Predict.** Over how many lanes is one row of the 16 scores spread? And after how many shuffles with `__shfl_xor_sync` does each of
# these lanes know the row's maximum?

# %% solution="predict-fragments"
lanes_a_row = shuffles = None
### BEGIN SOLUTION
lanes_a_row = 16 // 4
shuffles = 2              # with the lane 1 apart, then with the one 2 apart
### END SOLUTION

# %% tests="predict-fragments" points=1
lk.check_prediction("a row's lanes", lanes_a_row, shuffles)

# %% [markdown]
# **Write** the middle of a flash attention on tensor cores. A block is one warp with 16 queries, and 16 keys are a tile. Loading and
# both products are given. `o` is 8 accumulators side by side, the 64 columns of the output, with rows as in `score`. For both rows of
# the lane, `r` = 0 and 1:
#
# 1. Find the row's new maximum: of the lane's four scores, `max[r]`, and the other lanes of the row.
# 2. Rescale `sum[r]` and the row's elements of `o`.
# 3. Make the scores weights, and add the lane's own four to `sum[r]`. The lanes' sums meet after the loop.
#
# Then fill `weight[0]` to `weight[3]`, as in the picture. `pack_bf16x2(low, high)` puts the left one of two neighbours first.

# %% solution="fragments"
%%cuda --name attention_mma
#include <cuda_bf16.h>
#include <math_constants.h>
#include "mma.cuh"     // mma_m16n8k16(d, a, b, c): d = a b + c
#include "pack.cuh"    // pack_bf16x2(low, high): two bfloat16s in a register
#include "warp.cuh"

__device__ unsigned pair(const __nv_bfloat16* at) { return *reinterpret_cast<const unsigned*>(at); }
__device__ unsigned pair(__nv_bfloat16 low, __nv_bfloat16 high) {
    return __bfloat16_as_ushort(low) | __bfloat16_as_ushort(high) << 16;
}

// One warp has 16 queries. All matrices have 64 columns.
__global__ void attention_mma(const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v, __nv_bfloat16* out,
                              int seq_len, int kv_len, int group, bool causal, float scale) {
    const int first_query = 16 * blockIdx.x, g = lane_id() / 4, t = lane_id() % 4;
    const long long z = blockIdx.y;
    q += z * seq_len * 64;
    out += z * seq_len * 64;
    k += z / group * kv_len * 64;
    v += z / group * kv_len * 64;
    const int earlier = kv_len - seq_len, end = causal ? min(kv_len, first_query + 16 + earlier) : kv_len;
    int visible[2];                       // keys that the queries g and g + 8 may see
    for (int r = 0; r < 2; ++r) visible[r] = causal ? min(kv_len, first_query + g + 8 * r + earlier + 1) : kv_len;

    unsigned query[4][4];                 // 4 times 16 columns
    for (int i = 0; i < 16; ++i) {
        const int row = min(first_query + g + i % 2 * 8, seq_len - 1);
        query[i / 4][i % 4] = pair(q + row * 64 + i / 2 * 8 + 2 * t);
    }
    float o[8][4] = {}, max[2] = {-CUDART_INF_F, -CUDART_INF_F}, sum[2] = {};
    for (int first = 0; first < end; first += 16) {
        float score[2][4] = {};           // 16 keys: two accumulators
        for (int half = 0; half < 2; ++half) {
            const __nv_bfloat16* row = k + min(first + 8 * half + g, kv_len - 1) * 64 + 2 * t;
            for (int step = 0; step < 4; ++step) {
                const unsigned key[2] = {pair(row + 16 * step), pair(row + 16 * step + 8)};
                mma_m16n8k16<__nv_bfloat16>(score[half], query[step], key, score[half]);
            }
            for (int i = 0; i < 4; ++i) {
                const int column = first + 8 * half + 2 * t + i % 2;
                score[half][i] = column < visible[i / 2] ? scale * score[half][i] : -CUDART_INF_F;
            }
        }

        unsigned weight[4];
        // BEGIN SOLUTION
        for (int r = 0; r < 2; ++r) {
            float new_max = max[r];
            for (int i = 0; i < 4; ++i) new_max = fmaxf(new_max, score[i / 2][2 * r + i % 2]);
            new_max = fmaxf(new_max, __shfl_xor_sync(0xffffffffu, new_max, 1));
            new_max = fmaxf(new_max, __shfl_xor_sync(0xffffffffu, new_max, 2));
            const float correction = __expf(max[r] - new_max);
            max[r] = new_max;
            sum[r] *= correction;
            for (int i = 0; i < 16; ++i) o[i / 2][2 * r + i % 2] *= correction;
            for (int i = 0; i < 4; ++i) {
                float& s = score[i / 2][2 * r + i % 2];
                s = __expf(s - new_max);
                sum[r] += s;
            }
        }
        weight[0] = pack_bf16x2(score[0][0], score[0][1]);
        weight[1] = pack_bf16x2(score[0][2], score[0][3]);
        weight[2] = pack_bf16x2(score[1][0], score[1][1]);
        weight[3] = pack_bf16x2(score[1][2], score[1][3]);
        // END SOLUTION

        for (int d = 0; d < 8; ++d) {
            unsigned value[2];
            for (int i = 0; i < 2; ++i) {
                const int row = first + 8 * i + 2 * t, low = min(row, kv_len - 1), high = min(row + 1, kv_len - 1);
                value[i] = pair(v[low * 64 + 8 * d + g], v[high * 64 + 8 * d + g]);
            }
            mma_m16n8k16<__nv_bfloat16>(o[d], weight, value, o[d]);
        }
    }

    for (int r = 0; r < 2; ++r) {         // until here sum[r] is of this lane's own columns
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        const int row = first_query + g + 8 * r;
        if (row >= seq_len) continue;
        for (int i = 0; i < 16; ++i)
            out[row * 64 + i / 2 * 8 + 2 * t + i % 2] = __float2bfloat16(o[i / 2][2 * r + i % 2] / sum[r]);
    }
}

# %%
def my_mma_attention(q, k, v, causal=False, scale=None):
    """softmax(q k^T * scale) v in bfloat16 for a head_dim of 64, 16 queries a warp, on tensor cores."""
    batch, heads, seq_len, head_dim = q.shape
    kv_heads, kv_len = k.shape[1:3]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tensors = (q.contiguous(), k.contiguous(), v.contiguous(), out)
    args = (*tensors, seq_len, kv_len, heads // kv_heads, causal, scale)
    attention_mma((blocks(seq_len, 16), batch * heads), 32, args)
    return out


# %% tests="fragments" points=5
lk.check("attention", my_mma_attention, dtypes=["bfloat16"], head_dim=64);

# %% [markdown]
# There is no shared memory in it and no barrier. It reads k and v once for every 16 queries, which is far too often. `v5_tensor_cores`
# shares tiles between its warps, as your second kernel does, and takes fragments from there.

# %%
attention_mma.resources("sm_90a")

# %% [markdown]
# ## Turns
# In a clock cycle a multiprocessor of an H200 can do 4096 FLOPs of bfloat16 on its tensor cores: times 132 multiprocessors and
# 1.83 GHz, these are the 989 TFLOP/s of the data sheet. And it can take 16 exponentials.
#
# **Predict.** 64 queries, 128 keys, `head_dim` 64. How many cycles do both products take, and how many the exponentials? If one comes
# after the other, in what share of the time do tensor cores work?

# %% solution="predict-turns"
product_cycles = exponential_cycles = share = None
### BEGIN SOLUTION
product_cycles = 2 * 2 * 64 * 128 * 64 / 4096
exponential_cycles = 64 * 128 / 16
share = product_cycles / (product_cycles + exponential_cycles)
### END SOLUTION

# %% tests="predict-turns" points=1
lk.check_prediction("products and exponentials", product_cycles, exponential_cycles, share)

# %% [markdown]
# So the fastest multipliers of the chip would idle while exponentials are taken. `v5` mixes the two within each warp: exponentials of
# some keys run while weights of others are multiplied. `v6_hopper` has two or three groups of four warps that take turns, as in the
# picture's last part: one multiplies while another one takes exponentials. Copies are left to one more thread, which asks a copy
# engine for whole tiles. Lab 07 is about these parts.

# %%
entries = ["v3_tiled", my_mma_attention, "v4_warp_tiles", "v5_tensor_cores", "v6_hopper", "flash", "cudnn"]
lk.bench("attention", entries, dtype="bfloat16", head_dim=64).plot()

# %% [markdown]
# `flash` is FlashAttention-2 as it comes with PyTorch, `cudnn` NVIDIA's own library.
#
# ## A published table, run again
# A published flash attention in float32, 32 heads of 128, is compared on an RTX 3090 with PyTorch's `scaled_dot_product_attention`,
# SDPA for short. `data/published` keeps the figures. Here they stand beside ours on an H200, the fastest of v3 and later, at the same
# sizes. SDPA has more than one implementation for float32, so there are two ratios: to `math`, which stores the matrix, and to
# `efficient`, which does not.

# %%
others = published("attention_rtx3090").set_index("seq_len")
names = [*list(lk.ops["attention"].variants)[3:], "math", "efficient"]
table = lk.bench("attention", names, dtype="float32", head_dim=128, seq_len=list(others.index))
rows = table.frame
ours = rows[rows["kind"] == "ours"].sort_values("ms").groupby("seq_len").head(1).set_index("seq_len")
math_, efficient = (rows[rows["variant"] == name].set_index("seq_len") for name in ("math", "efficient"))

print("ours and SDPA:", table.source)
pandas.DataFrame({
    "published, times SDPA": others["speedup"],
    "ours, times math": (math_["ms"] / ours["ms"]).round(2),
    "ours, times efficient": (efficient["ms"] / ours["ms"]).round(2),
    "memory saved, published": others["memory_saved_percent"].map("{:.1f}%".format).replace("nan%", ""),
    "by sizes": [f"{1 - 128 / (2 * n):.1%}" for n in others.index],
    "ours, against math": (1 - ours["peak_mb"] / math_["peak_mb"]).map("{:.1%}".format).replace("nan%", "not recorded"),
})

# %% [markdown]
# A ratio says little until it says to what. Whoever compares with `math` wins by leaving out the matrix; `efficient` has left it out
# already.
#
# The published savings of memory, of which only the ends are known, are what sizes alone give: an output of N x 128 against two matrices
# of N x N. They would be the same on any GPU, for any kernel that stores no matrix, a slow one too.
# Ours are smaller for short rows: `v7_split` writes q, k and v down once more, as halves.
#
# ## Still wasted
# - **Tiles on the diagonal.** Half of their scores are hidden, and the products compute them all.
# - **Short sentences.** A row's first softmax has no product of the same row to hide under. With few tiles that shows.
# - **float32.** Tensor cores take bfloat16 and float16. A float32 number can be split into two halves, and a product into three, so that
#   float32 can be computed on them too: `v7_split` in the table above does that.
# - **Few queries.** A model that writes asks with one new token at a time: one block a head, and one useful row in it, for a million
#   keys. There the keys should be split, not the queries.
#
# What would you add next? And a question to take along: if each query saw only the last 128 keys before it, its first tiles
# could be hidden as a whole. Which line of your kernels would then give nan?
