# %% [markdown]
# # 03 Matrix multiplication
# Most of the work of a language model is products of matrices. NVIDIA's library for them is called *cuBLAS*. A kernel that follows
# the formula leaves nearly all of the GPU idle.
#
# This lab climbs from there, one idea a step. Before each step the profiler says what is wasted, and after it, what has become of
# it.
#
# You need labs 01 and 02.

# %% tags=["parameters"] again={"seed": 7, "rows": 33, "cols": 90, "depth": 41}
seed = 0
rows, cols, depth = 50, 70, 33      # of a small example; odd sizes welcome

# %%
%load_ext labkernels
import pandas
import torch

import labkernels as lk

generator = torch.Generator().manual_seed(seed)


def blocks(count, size):
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


# %% [markdown]
# ## The limit
# In c = a b, each element is a row of *a* times a column of *b*, pair by pair, added up. *a* has *m* rows and *k* columns, *b* has *k*
# rows and *n* columns:
#
# $$ c_{ij} = \sum_{l=1}^{k} a_{il}\, b_{lj} $$

# %%
lk.draw.matmul_element()

# %% [markdown]
# A multiplication with an addition is one instruction, *FMA*, and counts as 2 FLOPs.
#
# **Predict.** Two float32 matrices of 4096 x 4096. How many FLOPs does their product take? How many bytes move if *a* and *b* are read
# once and *c* is written once? And how many do the threads ask for if every FMA reads its two numbers anew?

# %% solution="predict-cost"
flops = least_bytes = asked_bytes = None
### BEGIN SOLUTION
flops = 2 * 4096**3
least_bytes = 3 * 4096**2 * 4
asked_bytes = 4096**3 * 2 * 4
### END SOLUTION

# %% tests="predict-cost" points=1
lk.check_prediction("matmul cost", flops, least_bytes, asked_bytes)

# %% [markdown]
# An H200's data sheet says 67 TFLOP/s for float32, and 4.8 TB/s for its memory. So:

# %%
print(f"the FLOPs take                    {flops / 67e12 * 1000:6.2f} ms")
print(f"the least bytes take              {least_bytes / 4.8e12 * 1000:6.2f} ms")
print(f"the bytes asked for, from memory  {asked_bytes / 4.8e12 * 1000:6.2f} ms")

# %% [markdown]
# Arithmetic is the limit, by far, for whoever reads a number once and uses it often. Who reads it anew each time may come down to
# 2% of that. So the theme is *reuse*: in caches, then in shared memory, then in registers.
#
# ## By the formula
# One thread an element. Threads along `x` count rows, those along `y` columns.

# %%
%%cuda --name naive
__global__ void naive(const float* a, const float* b, float* c, int m, int n, int k) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    int col = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= m || col >= n) return;
    float sum = 0.0f;
    for (int i = 0; i < k; ++i) {
        float left = a[row * k + i];
        float right = b[i * n + col];
        sum += left * right;
    }
    c[row * n + col] = sum;
}

# %%
a, b = torch.randn(rows, depth, generator=generator), torch.randn(depth, cols, generator=generator)
c = torch.empty(rows, cols)
naive((blocks(rows, 32), blocks(cols, 8)), (32, 8), (a, b, c, rows, cols, depth))
print("the largest difference from PyTorch is below 0.0001:", bool((c - a @ b).abs().max() < 1e-4))

# %% [markdown]
# **Predict.** The block has 32 x 8 threads, the matrices 64 x 64 elements. How many sectors does a request for `left` touch, and how
# many one for `right`? And if `x` counted columns and `y` rows?

# %% solution="predict-sectors"
left_now = right_now = left_then = right_then = None
### BEGIN SOLUTION
left_now = 32       # 32 rows of a
right_now = 1       # one element of b for all
left_then = 1       # one element of a for all
right_then = 4      # 32 neighbours in a row of b
### END SOLUTION

# %% tests="predict-sectors" points=1
lk.check_prediction("matmul sectors", left_now, right_now, left_then, right_then)

# %%
square = torch.randn(64, 64, generator=generator)
%profile naive((2, 8), (32, 8), (square, square, torch.empty(64, 64), 64, 64, 64))

# %% [markdown]
# ## Step 1: coalesced
# **Write** the kernel with `x` along a row of *c*. The tests allow 5 sectors for each pair of loads, and 4 for each store.

# %% solution="coalesced"
%%cuda --name coalesced
__global__ void coalesced(const float* a, const float* b, float* c, int m, int n, int k) {
    // BEGIN SOLUTION
    int row = blockIdx.y * blockDim.y + threadIdx.y;
    int col = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m || col >= n) return;
    float sum = 0.0f;
    for (int i = 0; i < k; ++i) sum += a[row * k + i] * b[i * n + col];
    c[row * n + col] = sum;
    // END SOLUTION
}

# %%
def launched(kernel, tile, block):
    """A function that multiplies two matrices with `kernel`; a block owns `tile` (columns, rows) of the result."""

    def my_matmul(a, b):
        (m, k), n = a.shape, b.shape[1]
        c = torch.empty(m, n, device=a.device)
        kernel((blocks(n, tile[0]), blocks(m, tile[1])), block, (a, b, c, m, n, k))
        return c

    my_matmul.__name__ = f"my_{kernel.name}"
    return my_matmul


my_coalesced = launched(coalesced, (32, 8), (32, 8))
plain = {"dtypes": ["float32"], "layout": "rows", "epilogue": "none"}      # the cases that concern us here

# %% tests="coalesced" points=3
lk.check("matmul", my_coalesced, **plain)
size = {"m": 64, "n": 64, "k": 64}
pairs, stores = 64**3 // 32, 64**2 // 32      # requests of warps
lk.check_counters("matmul", my_coalesced, size, global_load_sectors=5 * pairs, global_store_sectors=4 * stores);

# %% [markdown]
# 33 sectors have become 5. But every FMA still needs two loads.
#
# ## Step 2: tiles in shared memory
# A row of *a* is wanted by all the columns of *c*. So let a block of 32 x 32 threads fetch a tile of *a* and a tile of *b* into shared
# memory, together, and let every thread take from there what it needs. Then the next pair of tiles.

# %%
lk.draw.matmul_tiles()

# %% [markdown]
# **Predict**, for 4096 x 4096 again. With tiles of 32 x 32, how many bytes of *a* and *b* do all blocks together read from global
# memory? How many bytes of shared memory does a block need?

# %% solution="predict-tiles"
tile_bytes = shared_bytes = None
### BEGIN SOLUTION
tile_bytes = 4096**3 * 2 * 4 / 32
shared_bytes = 2 * 32 * 32 * 4
### END SOLUTION

# %% tests="predict-tiles" points=1
lk.check_prediction("matmul tiles", tile_bytes, shared_bytes)

# %% [markdown]
# **Write** what happens with one pair of tiles, those that begin at column `first` of *a* and at row `first` of *b*. Each thread
# fetches one element of each, 0 where the matrix has ended. Then 32 FMAs from shared memory. Two barriers are needed: where?

# %% solution="tiled"
%%cuda --name tiled -D TILE=32
__global__ void tiled(const float* a, const float* b, float* c, int m, int n, int k) {
    __shared__ float a_tile[TILE][TILE], b_tile[TILE][TILE];
    int x = threadIdx.x, y = threadIdx.y;
    int row = blockIdx.y * TILE + y, col = blockIdx.x * TILE + x;
    float sum = 0.0f;
    for (int first = 0; first < k; first += TILE) {
        // BEGIN SOLUTION
        a_tile[y][x] = row < m && first + x < k ? a[row * k + first + x] : 0.0f;
        b_tile[y][x] = first + y < k && col < n ? b[(first + y) * n + col] : 0.0f;
        __syncthreads();
        for (int i = 0; i < TILE; ++i) sum += a_tile[y][i] * b_tile[i][x];
        __syncthreads();
        // END SOLUTION
    }
    if (row < m && col < n) c[row * n + col] = sum;
}

# %%
my_tiled = launched(tiled, (32, 32), (32, 32))

# %% [markdown]
# In the tests *a* and *b* have 3 x 3 tiles each. Every tile is read 3 times and *c* is written once, so 7/3 of the least bytes move.

# %% tests="tiled" points=4
lk.check("matmul", my_tiled, **plain)
size = {"m": 96, "n": 96, "k": 96}
lk.check_counters("matmul", my_tiled, size, bytes_at_most=2.4, bank_conflicts=0);

# %%
%profile tiled((2, 2), (32, 32), (square, square, torch.empty(64, 64), 64, 64, 64))

# %% [markdown]
# Global memory is quiet. The hot line is now the one in the middle: each FMA of a warp makes two requests to shared memory. In a clock
# cycle a multiprocessor of an H200 can start FMAs for 4 warps, and serve 1 such request.
#
# ## Step 3: tiles in registers
# What shared memory was for global memory, registers are for shared memory. Let a thread own a *patch* of *c*, not one element:

# %%
lk.draw.register_patch()

# %% [markdown]
# **Predict.** How many loads from shared memory does an FMA need with patches of 4 x 4, and with 8 x 8? With which of the two do loads
# and FMAs take the same time, by the numbers above? Answer `4` or `8`.

# %% solution="predict-patches"
loads_4 = loads_8 = balanced = None
### BEGIN SOLUTION
loads_4 = 8 / 16
loads_8 = 16 / 64
balanced = 8          # 4 FMAs for one load
### END SOLUTION

# %% tests="predict-patches" points=1
lk.check_prediction("matmul patches", loads_4, loads_8, balanced)

# %% [markdown]
# A block of 16 x 16 threads owns 64 x 64 elements of *c*. A thread's patch is 4 x 4, and not in one piece: thread `(x, y)` has the rows
# `y`, `y + 16`, `y + 32` and `y + 48` of the block's tile, and such columns. So neighbours still touch neighbouring words.
#
# Fetching and writing are given. `a_tile` lies transposed, and both tiles have some words more in a row, for the sake of the banks.
#
# **Write** the step at depth `d`: 8 loads from shared memory into registers, then 16 FMAs. `float left[PATCH];` declares 4 numbers;
# they live in registers if all loops over them have a fixed length.

# %% solution="registers"
%%cuda --name registers -D TILE=64 -D DEPTH=16 -D SIDE=16 -D PATCH=4
__global__ void registers(const float* a, const float* b, float* c, int m, int n, int k) {
    __shared__ float a_tile[DEPTH][TILE + 2], b_tile[DEPTH][TILE + 16];
    int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * TILE, col = blockIdx.x * TILE;
    float sum[PATCH][PATCH] = {};
    for (int first = 0; first < k; first += DEPTH) {
        for (int i = 0; i < TILE; i += SIDE) {
            a_tile[x][y + i] = row + y + i < m && first + x < k ? a[(row + y + i) * k + first + x] : 0.0f;
            b_tile[y][x + i] = first + y < k && col + x + i < n ? b[(first + y) * n + col + x + i] : 0.0f;
        }
        __syncthreads();
        for (int d = 0; d < DEPTH; ++d) {
            // BEGIN SOLUTION
            float left[PATCH], right[PATCH];
            for (int i = 0; i < PATCH; ++i) {
                left[i] = a_tile[d][y + SIDE * i];
                right[i] = b_tile[d][x + SIDE * i];
            }
            for (int i = 0; i < PATCH; ++i)
                for (int j = 0; j < PATCH; ++j) sum[i][j] += left[i] * right[j];
            // END SOLUTION
        }
        __syncthreads();
    }
    for (int i = 0; i < PATCH; ++i)
        for (int j = 0; j < PATCH; ++j) {
            int r = row + y + SIDE * i, s = col + x + SIDE * j;
            if (r < m && s < n) c[r * n + s] = sum[i][j];
        }
}

# %%
my_registers = launched(registers, (64, 64), (16, 16))

# %% tests="registers" points=4
lk.check("matmul", my_registers, **plain)
size = {"m": 128, "n": 128, "k": 128}
fmas = 128**3 // 32      # of warps
lk.check_counters("matmul", my_registers, size, bytes_at_most=1.7, bank_conflicts=0, shared_load_requests=fmas // 2);

# %% [markdown]
# A patch in one piece, with columns `4 * x` to `4 * x + 3`, would be as right, but its lanes would meet in the
# banks, and its stores would be scattered.
#
# ## Step by step
# Here are your versions between two of the ladder's, at 128 x 128 x 128. `v1_naive_cuda` is the first one above. `v5_pipelined` loads 4
# numbers at a time, and fetches the next tile while it multiplies; for matrices as small as these it takes small tiles.

# %%
table = {}
for version in ("v1_naive_cuda", my_coalesced, my_tiled, my_registers, "v5_pipelined"):
    counted = lk.check_counters("matmul", version, size, quiet=True)
    table[getattr(version, "__name__", version)] = {
        "global MB": counted.bytes_moved / 1e6,
        "global loads for an FMA": counted.global_load_requests / fmas,
        "shared loads for an FMA": counted.shared_load_requests / fmas,
    }
pandas.DataFrame(table).T.round(2)

# %% [markdown]
# The profiler counts what the source says. NVIDIA's compiler may do better: where it can unroll a loop it joins loads of neighbouring
# words and keeps what it has in registers. `%sass registers` shows what it made of yours.

# %% [markdown]
# ## Beside cuBLAS
# Times, on the GPU. The limit is what float32 arithmetic alone would take.

# %%
steps = ["v1_naive_cuda", "v2_coalesced", "v3_tiled", "v4_registers", "v5_pipelined"]
lk.bench("matmul", [*steps, my_registers, "cublas"], dtype="float32", m=[512, 1024, 2048, 4096, 8192]).plot()

# %% [markdown]
# From left to right the matrices grow, and with them the use that one number read can be of. Which step bought most? Where is your
# distance to cuBLAS largest? And how many of 132 multiprocessors have something to do, if a block owns 64 x 64 elements of 512 x 512?
#
# ## Beyond FMA
# A GPU has a second place to multiply. *Tensor cores* take whole small matrices, of bfloat16 or float16, in one instruction of a warp:
# in `v6_tensor_cores` that is 16 x 8 x 16 = 2048 products, where an FMA of a warp has 32. The data sheet says 989 TFLOP/s. The tiles
# stay; how to feed tensor cores from them is a lab of its own.

# %%
beyond = [name for name in lk.ops["matmul"].variants if name.startswith(("v5", "v6", "v7"))]
lk.bench("matmul", [*beyond, "cublas"], dtype="bfloat16", m=[512, 1024, 2048, 4096, 8192]).plot()

# %% [markdown]
# ## Still wasted
# - **Waiting.** Your block fetches, waits, multiplies, waits. It could fetch the next tiles in the meantime.
# - **Instructions.** A load brings 4 bytes where 16 are possible, and counts as one instruction beside the FMAs.
# - **Edges.** A matrix of 65 rows costs as much as one of 128.
#
# What would you add next?
