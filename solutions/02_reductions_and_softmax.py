# %% [markdown]
# # 02 Reductions and softmax
# Thousands of threads, and one number wanted: the sum of a vector, or its largest element. Turning many numbers into one is
# called a *reduction*, and it is the first thing that threads cannot do alone. They have to meet.
#
# You add up a vector in three ways, each with a faster place to meet, and the profiler watches. Then comes softmax, which needs two
# reductions for every row, and a pair of numbers that makes do with one. On that pair lab 05 builds flash attention.
#
# You need lab 01: warps, sectors, shared memory and its banks.

# %% tags=["parameters"] again={"seed": 7, "n": 777}
seed = 0
n = 1000          # elements of the small examples; odd sizes welcome

# %%
%load_ext labkernels
import math

import numpy as np
import torch

import labkernels as lk

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(seed)


def blocks(count, size):
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


# %% [markdown]
# ## One total for all
# The shortest sum that one could write: thread *i* adds element *i* to the total.

# %%
%%cuda --name plain_sum
__global__ void plain_sum(const float* x, float* total, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) *total += x[i];
}

# %% [markdown]
# `*total` is the number that the pointer `total` points to. What does the sanitizer say?

# %%
x, total = torch.rand(n, generator=generator), torch.zeros(1)
lk.sanitize(plain_sum, blocks(n, 256), 256, (x, total, n))

# %% [markdown]
# A race: two threads touch the same number, one of them writes, and nothing says who comes first. `+=` looks like one step, but
# it is three: read the total, add, write it back. The upper half of the picture shows what goes wrong.

# %%
lk.draw.atomic_additions()

# %% [markdown]
# The lower half shows the cure. `atomicAdd(total, x[i])` reads, adds and writes as one step that nobody can interrupt. No
# addition is lost.

# %%
%%cuda --name atomic_sum
__global__ void atomic_sum(const float* x, float* total, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(total, x[i]);
}

# %%
def my_atomic_sum(x):
    total = torch.zeros(1, device=x.device)
    atomic_sum(blocks(len(x), 256), 256, (x.contiguous(), total, len(x)))
    return total


lk.check("sum", my_atomic_sum);

# %% [markdown]
# Right, and slow, because the picture also shows the price: each addition waits for the one before it. A million threads stand
# in one queue.
#
# A first way out: let fewer threads stand in it. With the grid-stride loop of lab 01, each thread adds up a share of the vector
# in a register, where nobody else is, and queues once.
#
# **Predict.** A vector of $2^{26}$ float32, 67 million. How many milliseconds does it take to read it at 4.8 TB/s, the H200's
# data sheet? And how many times fewer atomic additions are there if 1024 blocks of 256 threads add up shares first? Within 1%
# is right.

# %% solution="predict-limit"
read_ms = times_fewer = None
### BEGIN SOLUTION
read_ms = 2**26 * 4 / 4.8e12 * 1000
times_fewer = 2**26 / (1024 * 256)
### END SOLUTION

# %% tests="predict-limit" points=1
lk.check_prediction("sum limit", read_ms, times_fewer)

# %% [markdown]
# `v1_naive` is the kernel above. `v1_grid_stride`, in Numba CUDA, is the loop with one atomic addition a thread. `torch` is PyTorch.

# %%
table = lk.bench("sum", ["v1_naive", "v1_grid_stride", "torch"])
table.plot()

# %% [markdown]
# `v1_naive` takes four times as long for four times as many elements. How long is that for one addition?

# %%
for row in table.frame.dropna(subset=["ms"]).itertuples():
    if row.variant == "v1_naive":
        print(f"{row.n:>10,} atomic additions: {row.ms * 1e6 / row.n:.2f} ns each")

# %% [markdown]
# The same time for each, however many there are: a queue. It also explains the line that turns flat. 262144 threads make 262144
# additions, however long the vector is, and until it is very long they wait for nothing else.
#
# ## The tree
# Two threads can add two pairs of numbers at the same time. So let everybody add pairs: 8 numbers become 4, then 2, then 1.

# %%
lk.draw.reduction_tree()

# %% [markdown]
# Eight numbers take 3 steps, 256 take 8, a million take 20. The threads meet in shared memory, and wait at a barrier after each step.
#
# Here is such a tree, with the nearest partner first: distance 1, then 2, then 4, up to 128. A block of 256 threads turns 256
# elements into one *partial sum*; thread *t* puts its element into `value[t]`, or 0 where the vector has ended.

# %%
%%cuda --name nearest_first -D THREADS=256
__global__ void nearest_first(const float* x, float* partial, int n) {
    __shared__ float value[THREADS];
    int t = threadIdx.x, i = blockIdx.x * THREADS + t;
    value[t] = i < n ? x[i] : 0.0f;
    __syncthreads();
    for (int distance = 1; distance < THREADS; distance *= 2) {
        if (t % (2 * distance) == 0) value[t] += value[t + distance];
        __syncthreads();
    }
    if (t == 0) partial[blockIdx.x] = value[0];
}

# %% [markdown]
# It is right. But a warp goes through its instructions for all 32 lanes together. If one of them has something to add, the warp is
# *busy*, and the others wait for it.
#
# **Predict.** There are 8 warps. How many are busy in the step in which 16 threads add? And how many would be, if those 16
# threads were neighbours?

# %% solution="predict-warps"
nearest_partner_first = neighbours = None
### BEGIN SOLUTION
nearest_partner_first = 8      # threads 0, 16, 32, ...: two in every warp
neighbours = 1                 # threads 0 to 15
### END SOLUTION

# %% tests="predict-warps" points=1
lk.check_prediction("busy warps", nearest_partner_first, neighbours)

# %%
big = torch.rand(2048, generator=generator)
%profile nearest_first(8, 256, (big, torch.empty(8), 2048))

# %% [markdown]
# In the line that adds, few lanes are *active*, and *diverge* counts how often a warp came there and left lanes behind.
#
# So let neighbours work: thread *t* takes care of element `2 * distance * t`. Only this changes:

# %%
line = "        if (t % (2 * distance) == 0) value[t] += value[t + distance];"
packed = """        int k = 2 * distance * t;
        if (k < THREADS) value[k] += value[k + distance];"""
text = nearest_first.source.text.replace(line, packed).replace("nearest_first", "packed_threads")
packed_threads = lk.Kernel(text, "packed_threads", defines={"THREADS": 256})

# %% [markdown]
# **Predict.** Now the lanes of a warp are at `value[2 * distance * t]`. In how many passes does shared memory serve 32 of them at
# distance 1, and at distance 4?

# %% solution="predict-banks"
passes_at_1 = passes_at_4 = None
### BEGIN SOLUTION
passes_at_1 = 2      # 2 words apart: 16 banks for 32 lanes
passes_at_4 = 8      # 8 words apart: 4 banks
### END SOLUTION

# %% tests="predict-banks" points=1
lk.check_prediction("passes of a tree", passes_at_1, passes_at_4)

# %%
%profile packed_threads(8, 256, (big, torch.empty(8), 2048))

# %% [markdown]
# The waste has moved. More lanes are active, and they meet in the banks.
#
# ## Write the tree
# The other order is the one of the picture: the farthest partner first, distances 128, 64, down to 1. Neighbours work, on
# neighbouring words.

# %%
lk.draw.tree_warps()

# %% [markdown]
# **Write** it. A loop that halves looks like `for (int distance = THREADS / 2; distance > 0; distance /= 2)`.

# %% solution="tree"
%%cuda --name tree_sum -D THREADS=256
__global__ void tree_sum(const float* x, float* partial, int n) {
    __shared__ float value[THREADS];
    int t = threadIdx.x, i = blockIdx.x * THREADS + t;
    value[t] = i < n ? x[i] : 0.0f;
    // BEGIN SOLUTION
    __syncthreads();
    for (int distance = THREADS / 2; distance > 0; distance /= 2) {
        if (t < distance) value[t] += value[t + distance];
        __syncthreads();
    }
    // END SOLUTION
    if (t == 0) partial[blockIdx.x] = value[0];
}

# %% [markdown]
# The partial sums are a vector again, 256 times shorter. Launch again, until one number is left.

# %%
def with_tree(kernel):
    def my_tree_sum(x):
        x = x.contiguous()
        while True:
            partial = torch.empty(blocks(len(x), 256), device=x.device)
            kernel(len(partial), 256, (x, partial, len(x)))
            if len(partial) == 1:
                return partial
            x = partial

    return my_tree_sum


# %% [markdown]
# The tests count, too. $2^{16}$ elements take 256 blocks and then one more. In each, 4 + 2 + 1 + 1 + 1 + 1 + 1 + 1 = 12 times a
# warp is busy, with two loads from shared memory; and one load fetches the sum.

# %% tests="tree" points=3
lk.check("sum", with_tree(tree_sum))
lk.check_counters("sum", with_tree(tree_sum), {"n": 2**16}, bytes_at_most=1.05, bank_conflicts=0, shared_load_requests=257 * 25);

# %%
for name, kernel in {"nearest first": nearest_first, "packed threads": packed_threads, "farthest first": tree_sum}.items():
    counted = lk.profile(kernel, 8, 256, (big, torch.empty(8), 2048))
    print(f"{name:15} {counted.shared_load_requests / 8:4.0f} loads and {counted.bank_conflicts / 8:4.0f} bank conflicts a block")

# %% [markdown]
# **See** what the barrier in the loop is for. Take it out of your own source, and let the sanitizer watch.

# %%
before, barrier, after = tree_sum.source.text.rpartition("__syncthreads();")
without_it = lk.Kernel(before + after, "tree_sum", defines={"THREADS": 256})

x, partial = torch.rand(n, generator=generator), torch.empty(blocks(n, 256))
lk.sanitize(without_it, len(partial), 256, (x, partial, n))

# %% [markdown]
# One thread is a step ahead of the other: it has read a number to which the other still had to add. On a GPU such a kernel may
# give the right sum a thousand times in a row. So the sanitizer does not look at results: it looks at who waits for whom.
#
# Even the best tree leaves one warp at work from distance 32 on, and still all 8 come to a barrier in every step.
#
# ## Lanes that exchange
# Inside a warp there is a faster place to meet. The threads of a warp, its *lanes*, can hand each other what they have in
# registers. That is called a *shuffle*. It takes no memory and no barrier: the lanes wait for each other in the shuffle itself.

# %%
lk.draw.lane_exchange()

# %% [markdown]
# A real warp has 32 lanes, and the distances are 16, 8, 4, 2, 1. Both partners add, and so in the end every lane holds the sum.
# Softmax will need that.
#
#     float other = __shfl_xor_sync(0xffffffff, value, distance);
#
# It hands out this lane's `value` and returns the partner's. The *mask* `0xffffffff`, 32 bits that are all 1, says that all 32
# lanes take part. "xor" says who the partner is: write the lane's number in binary and flip the bit of the distance. With
# distance 4, lane 1 (`00001`) and lane 5 (`00101`) are partners.
#
# **Write** `warp_sum`. `__device__` marks a function that kernels call; this one returns a float.
#
# Two kernels below it are given. `lane_sums` shows what each lane gets. `shuffle_sum` adds up a vector: each thread its share,
# each warp its lanes, and one warp what the warps have. Shared memory and a barrier are still there, once.

# %% solution="warp"
%%cuda --name lane_sums --name shuffle_sum
// The sum of the 32 lanes' values, the same in every lane.
__device__ float warp_sum(float value) {
    // BEGIN SOLUTION
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffff, value, distance);
    }
    return value;
    // END SOLUTION
}

__global__ void lane_sums(const float* x, float* out) {
    int i = blockIdx.x * 32 + threadIdx.x;
    out[i] = warp_sum(x[i]);
}

__global__ void shuffle_sum(const float* x, float* partial, int n) {
    float sum = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    sum = warp_sum(sum);

    __shared__ float of_warp[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    if (lane == 0) of_warp[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = warp_sum(lane < warps ? of_warp[lane] : 0.0f);
        if (lane == 0) partial[blockIdx.x] = sum;
    }
}

# %%
def my_lane_sums(x):
    out = torch.empty_like(x)
    lane_sums(len(x), 32, (x, out))
    return out


def my_shuffle_sum(x):
    x = x.contiguous()
    partial = torch.empty(min(1024, blocks(len(x), 1024)), device=x.device)
    shuffle_sum(len(partial), 256, (x, partial, len(x)))
    total = torch.empty(1, device=x.device)
    shuffle_sum(1, 256, (partial, total, len(partial)))
    return total


def sum_in_every_lane(x):
    return x.sum(dim=1, keepdim=True).expand(x.shape)


# %% tests="warp" points=3
# a row is a warp, a column is a lane
lk.check_against(sum_in_every_lane, my_lane_sums, [{"x": (1, 32)}, {"x": (5, 32)}])
lk.check("sum", my_shuffle_sum);

# %% [markdown]
# What has become of shared memory?

# %%
for name, fn in {"tree": with_tree(tree_sum), "shuffles": my_shuffle_sum}.items():
    counted = lk.check_counters("sum", fn, {"n": 2**16}, quiet=True)
    requests = counted.shared_load_requests + counted.shared_store_requests
    print(f"{name:9} {requests:6} requests to shared memory, {counted.barriers:5} times a warp came to a barrier")

# %% [markdown]
# `v3_warp` has the same idea, and reads 16 bytes at a time.

# %%
lk.bench("sum", ["v1_naive", "v2_tree", "v3_warp", my_shuffle_sum, "torch"]).plot()

# %% [markdown]
# Follow `v3_warp` to the right, where it comes to the limit: there the sum costs nothing but the reading of its bytes, and
# PyTorch is no faster. On the left all are far above the limit: a launch takes some microseconds, and a short vector is read in less.
#
# ## The order matters
# All these sums add the same numbers in different orders. On paper that changes nothing. But a float32 keeps 24 binary digits,
# about 7 decimal ones, and after each addition the rest is rounded away.
#
# **Predict.** 20 million ones. What is their sum in float32, added one by one? And in a tree? One more thing to know: $2^{24}$
# is 16777216, and $2^{24} + 1$ has 25 binary digits.

# %% solution="predict-ones"
one_by_one = in_a_tree = None
### BEGIN SOLUTION
one_by_one = 2**24          # 2**24 + 1 is rounded to 2**24, again and again
in_a_tree = 20_000_000      # equals are added to equals: no digits are lost
### END SOLUTION

# %% tests="predict-ones" points=1
lk.check_prediction("sum of ones", one_by_one, in_a_tree)

# %%
print(f"one by one:  {np.add.accumulate(np.ones(20_000_000, dtype=np.float32))[-1]:,.0f}")
print(f"your kernel: {my_shuffle_sum(torch.ones(20_000_000, device=device)).item():,.0f}")

# %% [markdown]
# So the tree is not only faster. Its elements go through 20 additions where there are a million of them; one by one, the first
# goes through a million.

# %%
lk.draw.rounding_errors()

# %% [markdown]
# This is why no check in this book asks for the very bits that PyTorch gives. It compares with float64, and allows an error that
# fits the number of additions.
#
# And on a GPU the order in the queue of `atomicAdd` changes from run to run, and so do the last digits. A tree gives the same bits
# every time.

# %% [markdown]
# ## Softmax
# Softmax turns a row of numbers into weights that are positive and add up to 1. Larger numbers get larger weights:
#
# $$ y_i = \frac{e^{x_i}}{\sum_j e^{x_j}} $$
#
# Attention does this to every row of its scores. As a formula it is short; in float32 it breaks.

# %%
row = torch.tensor([80.0, 90.0, 94.0, 100.0])
row.exp() / row.exp().sum()

# %%
lk.draw.exponent_range(row.tolist())

# %% [markdown]
# $e^{89}$ is more than a float32 can hold and becomes infinite; infinite over infinite is `nan`, not a number. The cure is to
# subtract the same number from the whole row. Above and below the fraction line that is the same factor, so the weights stay as
# they are:
#
# $$ \frac{e^{x_i - m}}{\sum_j e^{x_j - m}} = \frac{e^{-m}\,e^{x_i}}{e^{-m} \sum_j e^{x_j}} $$
#
# With the row's maximum as *m*, the largest exponent is 0. Nothing overflows, and the sum is at least 1.

# %%
weights = (row - row.max()).exp()
weights / weights.sum()

# %% [markdown]
# ## Write it, in three passes
# The maximum has to be known before anything can be summed, and the sum before anything can be divided. So a kernel walks over
# the row three times. One warp owns a row, and neighbouring lanes read neighbouring columns. The picture has 4 lanes, a warp 32:

# %%
lk.draw.row_walk()

# %% [markdown]
# Each lane is left with one number, and five shuffles combine the 32. From here on your `warp_sum` comes from a file, `warp.cuh`.
# Beside it is `warp_max`, with `fmaxf(a, b)`, the larger of two, in place of `a + b`. Both give every lane the result, and all 32
# lanes must call them. `lane_id()` is this thread's lane.
#
# **Predict.** A matrix of 16384 rows and 4096 columns, float32. If every trip goes to memory: how many bytes do three passes read
# and write together? And what is the least that any softmax can do?

# %% solution="predict-trips"
three_pass_bytes = least_bytes = None
### BEGIN SOLUTION
trip = 16384 * 4096 * 4
three_pass_bytes = 4 * trip      # read three times, written once
least_bytes = 2 * trip
### END SOLUTION

# %% tests="predict-trips" points=1
lk.check_prediction("softmax trips", three_pass_bytes, least_bytes)

# %% [markdown]
# **Write** the three walks. `__expf` is the fast exponential, and `-CUDART_INF_F` is minus infinity, with which a maximum begins.

# %% solution="three-pass"
%%cuda --name softmax_three_pass
#include <math_constants.h>    // CUDART_INF_F
#include "warp.cuh"            // lane_id(), warp_id(), warp_sum(), warp_max()

__global__ void softmax_three_pass(const float* x, float* y, int rows, int cols) {
    int row = blockIdx.x * (blockDim.x / 32) + warp_id();
    if (row >= rows) return;
    x += row * cols;    // now x[0] .. x[cols - 1] is this warp's row, and y likewise
    y += row * cols;
    // BEGIN SOLUTION
    float max = -CUDART_INF_F;
    for (int col = lane_id(); col < cols; col += 32) max = fmaxf(max, x[col]);
    max = warp_max(max);

    float sum = 0.0f;
    for (int col = lane_id(); col < cols; col += 32) sum += __expf(x[col] - max);
    sum = warp_sum(sum);

    for (int col = lane_id(); col < cols; col += 32) y[col] = __expf(x[col] - max) / sum;
    // END SOLUTION
}

# %%
def my_three_pass_softmax(x):
    rows, cols = x.shape
    y = torch.empty(rows, cols, device=x.device)
    softmax_three_pass(blocks(rows, 4), 128, (x.contiguous(), y, rows, cols))    # 4 warps a block
    return y


# %% tests="three-pass" points=3
lk.check("softmax", my_three_pass_softmax, dtypes=["float32"])
lk.check_counters("softmax", my_three_pass_softmax, {"rows": 16, "cols": 512}, bytes_at_most=2.05);

# %%
x = torch.randn(16, 512, generator=generator)
%profile softmax_three_pass(4, 128, (x, torch.empty(16, 512), 16, 512))

# %% [markdown]
# ## Two numbers on one walk
# Is a walk for the maximum alone needed? Walk once, and carry two numbers: *m*, the largest value so far, and *s*, the sum of
# $e^{x - m}$ over the values so far.
#
# When a larger value comes, *s* has been measured against the wrong maximum. But all of it is wrong by the same factor.

# %%
lk.draw.online_softmax([2, 1, 4, 3])

# %% [markdown]
# Each value has a colour. In the third frame 4 arrives, and what stood there shrinks from the dashed outline to $e^{2-4}$, 0.14 of
# its height. Then the new value comes in with height 1. In symbols, for a new value *x*:
#
# $$ m' = \max(m, x), \qquad s' = s\,e^{m - m'} + e^{x - m'} $$
#
# Nothing is approximated: $e^{x_j - m}\,e^{m - m'}$ is $e^{x_j - m'}$ for each $x_j$ in the sum. This is called *online softmax*
# (Milakov and Gimelshein, 2018).
#
# Now 32 lanes walk over one row, and each ends with a pair of its own. Two pairs, each measured against its own maximum, become
# one by the same rule:
#
# $$ m = \max(m_a, m_b), \qquad s = s_a\,e^{m_a - m} + s_b\,e^{m_b - m} $$
#
# **Predict.** One lane has m = 3 and s = 2, another has m = 1 and s = 4. What is the merged pair? Within 1% is right.

# %% solution="predict-merge"
merged_m = merged_s = None
### BEGIN SOLUTION
merged_m = max(3, 1)
merged_s = 2 * math.exp(3 - 3) + 4 * math.exp(1 - 3)
### END SOLUTION

# %% tests="predict-merge" points=1
lk.check_prediction("merged pair", merged_m, merged_s)

# %% [markdown]
# ## Write the merge
# The merge is all that is missing. A single value *x* is the pair (x, 1), so the walk merges one value after the other into the
# lane's pair, and then five shuffles merge the lanes.
#
# A lane that has seen nothing yet holds (-inf, 0). And rows may hold `-inf` themselves: attention writes it where a token must
# not look, since $e^{-\infty}$ is 0. What is $-\infty - (-\infty)$?
#
# **Write** it. `struct Pair` is two numbers under one name, `a.m` and `a.s`; `return {m, s};` returns a new pair.

# %% solution="merge"
%%cuda --name softmax_online
#include <math_constants.h>
#include "warp.cuh"

struct Pair {
    float m;    // the largest value so far
    float s;    // the sum of exp(x - m) over the values so far
};

__device__ Pair merge(Pair a, Pair b) {
    // BEGIN SOLUTION
    float m = fmaxf(a.m, b.m);
    if (m == -CUDART_INF_F) return {m, 0.0f};    // nothing but -inf so far
    return {m, a.s * __expf(a.m - m) + b.s * __expf(b.m - m)};
    // END SOLUTION
}

__global__ void softmax_online(const float* x, float* y, int rows, int cols) {
    int row = blockIdx.x * (blockDim.x / 32) + warp_id();
    if (row >= rows) return;
    x += row * cols;
    y += row * cols;

    Pair pair = {-CUDART_INF_F, 0.0f};
    for (int col = lane_id(); col < cols; col += 32) pair = merge(pair, {x[col], 1.0f});
    for (int distance = 16; distance > 0; distance /= 2) {
        Pair other;
        other.m = __shfl_xor_sync(FULL_WARP, pair.m, distance);    // FULL_WARP, of warp.cuh, is 0xffffffff
        other.s = __shfl_xor_sync(FULL_WARP, pair.s, distance);
        pair = merge(pair, other);
    }
    for (int col = lane_id(); col < cols; col += 32) y[col] = __expf(x[col] - pair.m) / pair.s;
}

# %%
def my_online_softmax(x):
    rows, cols = x.shape
    y = torch.empty(rows, cols, device=x.device)
    softmax_online(blocks(rows, 4), 128, (x.contiguous(), y, rows, cols))
    return y


# %% tests="merge" points=4
lk.check("softmax", my_online_softmax, dtypes=["float32"])
lk.check_counters("softmax", my_online_softmax, {"rows": 16, "cols": 512}, bytes_at_most=1.55);

# %% [markdown]
# If your first try gave `nan` in rows that begin with `-inf`, you are in good company. $-\infty - (-\infty)$ is not a number, and
# a `nan` in one lane is in all 32 lanes five shuffles later.
#
# One row is left that no merge can save: nothing but `-inf`. Its sum is 0.

# %%
nothing = torch.full((1, 3), -math.inf, device=device)
print("PyTorch:", torch.softmax(nothing, dim=1).tolist(), " yours:", my_online_softmax(nothing).tolist())

# %% [markdown]
# Lab 04 meets such rows and decides what they should be.
#
# ## Count the trips
# Four trips where two are needed, or three:

# %%
lk.draw.softmax_trips()

# %% [markdown]
# The red trips could be saved. But does every trip go to memory? A row that was read a moment ago may still be in a cache.
#
# So what matters is how many rows are at work at the same time. An H200 has 132 multiprocessors with room for 64 warps each, and
# here a warp owns a row. The largest cache, called *L2*, is shared by all of them and holds 60 MB.

# %%
warps = 132 * 64
for cols in (256, 1024, 4096):
    print(f"{warps} rows of {cols:4} columns: {warps * cols * 4 / 1e6:5.1f} MB at work at once")

# %% [markdown]
# **Predict.** How many exponentials does each of your kernels compute for one element of a row, if a merge takes two? And which
# kernel is faster, `"three passes"` or `"running pair"`, where the rows at work stay in the cache? Where they do not?

# %% solution="predict-winner"
three_pass_exps = pair_exps = None
wins_in_cache = wins_in_memory = None
### BEGIN SOLUTION
three_pass_exps = 2                  # for the sum, for the result
pair_exps = 3                        # two in the merge, one for the result
wins_in_cache = "three passes"       # its extra read costs little there
wins_in_memory = "running pair"
### END SOLUTION

# %% tests="predict-winner" points=2
lk.check_prediction("softmax winner", three_pass_exps, pair_exps, wins_in_cache, wins_in_memory)

# %%
entries = ["v1_three_pass", "v2_online", my_online_softmax, "v3_registers", "torch", "torch.compile"]
lk.bench("softmax", entries, cols=[256, 1024, 4096, 16_384, 65_536]).plot()

# %% [markdown]
# `torch.compile` is PyTorch's compiler, given the one line `torch.softmax(x, dim=-1)`. Every point is the same work, 67 million
# elements in rows of different length, and so the limit is flat. Follow `v1_three_pass` and `v2_online` from left to right.
#
# - **Rows of 256 and 1024.** The running pair *loses*. The read that it saves comes from a cache, and the exponential that it
#   adds has to be computed. The better idea on paper is the slower kernel.
# - **Rows of 4096 and 16384.** The rows at work no longer fit, and saving a trip pays.
# - **Rows of 65536.** Both are far from the limit, side by side. There are 1024 rows and so 1024 warps, where the GPU has room
#   for 8448. With so few, nearly all of the time goes into waiting for memory.
#
# `v3_registers` needs no pair. It reads a row once, keeps it in the registers of a warp or of a whole block, and makes all three
# passes there. One read and one write: it runs along the limit as long as a row fits. PyTorch's kernels do so too for short rows,
# and leave it earlier.
#
# Then why learn the pair? Because in attention there need not be a row at all. Its scores are made one after the other, and who
# must see all of them before summing the first has to store them. The pair takes each score once, and lets it go.
#
# ## Still wasted
# - **An exponential.** Of the two exponents in a merge, one is always 0. A walk that asks which one computes half as many.
# - **Bytes a load.** Each lane reads 4 bytes at a time where 16 are possible.
# - **Room for warps.** One warp a row, however long the row is. With a block a row, more warps would be at work on few long rows;
#   pairs merge between warps as they do between lanes.
# - **The second read.** The running pair still reads the row twice, once to know *m* and *s* and once to use them.
#
# What would you add next?
