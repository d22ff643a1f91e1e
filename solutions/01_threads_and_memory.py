# %% [markdown]
# # 01 Threads and memory
# A GPU runs thousands of threads at once. Two questions decide what comes of it: which thread takes which element, and what
# has memory to deliver when 32 neighbours read at the same time?
#
# You write your first kernels in two languages, Python with Numba CUDA and CUDA C++. Then you count what memory delivers.
#
# You need lab 00.

# %% tags=["parameters"] again={"n": 777, "rows": 33, "cols": 130}
n = 1000           # elements of a vector; odd sizes welcome
rows = 45          # and of a matrix
cols = 70

# %%
%load_ext labkernels
import numpy as np
import torch

import labkernels as lk


def blocks_for(count, size):
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


# %% [markdown]
# ## Threads have numbers
# A launch starts a *grid* of *blocks*, and each block has the same number of threads, at most 1024. A thread knows three
# things: the number of its block, `blockIdx.x`, its number within the block, `threadIdx.x`, and how many threads a block has,
# `blockDim.x`.

# %%
lk.draw.grid_of_threads(blocks=3, threads=4, n=10)

# %% [markdown]
# Count the threads from the left, through all blocks, and you have the element:
#
# `i = blockIdx.x * blockDim.x + threadIdx.x`
#
# The grid consists of whole blocks, so a few threads at the end may have no element. They must do nothing.
#
# Why blocks at all? A GPU is made of *multiprocessors*, an H200 of 132. The threads of one block run on the same one, where they
# can share memory and wait for each other (lab 02). Blocks do not wait for each other, so a GPU may run them in any order, as
# many at once as fit: the same kernel suits a small GPU and a large one.
#
# **Predict.** A vector of `n` elements, blocks of 256 threads. How many blocks does the launch need? Which element does thread 5
# of block 2 take? How many threads have none?

# %% solution="predict-threads"
blocks_needed = element = idle_threads = None
### BEGIN SOLUTION
blocks_needed = blocks_for(n, 256)
element = 2 * 256 + 5
idle_threads = blocks_needed * 256 - n
### END SOLUTION

# %% tests="predict-threads" points=1
lk.check_prediction("blocks and threads", blocks_needed, element, idle_threads, n=n)

# %%
lk.draw.grid_of_threads(blocks_needed, 256, n)

# %% [markdown]
# ## The same kernel, twice
# *Numba* compiles Python functions, for the GPU too. *CUDA C++* is NVIDIA's own language for it. They share their words:
#
# | | Numba CUDA | CUDA C++ |
# |---|---|---|
# | a kernel | `@cuda.jit` above a `def` | `__global__ void` |
# | block, thread | `cuda.blockIdx.x`, `cuda.threadIdx.x` | `blockIdx.x`, `threadIdx.x` |
# | threads a block | `cuda.blockDim.x` | `blockDim.x` |
# | length of an array | `x.size` | comes as an argument |
# | launch | `kernel[blocks, threads](x, y)` | `kernel(blocks, threads, (x, y))` |
#
# **Write** the sum of two vectors in Numba: `out[i] = x[i] + y[i]`, for every thread that has an element.

# %% solution="add-numba"
from labkernels.cuda.numba_cuda import as_numba, cuda, stream


@cuda.jit
def add_numba(x, y, out):
    ### BEGIN SOLUTION
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < out.size:
        out[i] = x[i] + y[i]
    ### END SOLUTION


# %% [markdown]
# In the launch below, `as_numba` hands a PyTorch tensor to Numba without a copy, and `stream` puts the kernel into the queue where
# PyTorch's own kernels wait. Without a GPU Numba's simulator runs it, each GPU thread as a thread of Python.

# %%
def my_add_numba(x, y):
    out = torch.empty_like(x)
    add_numba[blocks_for(len(x), 256), 256, stream(x)](as_numba(x), as_numba(y), as_numba(out))
    return out


# %% tests="add-numba" points=2
pairs = [{"x": (length,), "y": (length,)} for length in (1, 3, 33, 256, 1000)]
lk.check_against(lambda x, y: x + y, my_add_numba, pairs);

# %% [markdown]
# **Write** it again, in CUDA C++. Nothing is given but the arguments; `square` in lab 00 shows the form.

# %% solution="add-cuda"
%%cuda --name add
__global__ void add(const float* x, const float* y, float* out, int n) {
    // BEGIN SOLUTION
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] + y[i];
    // END SOLUTION
}

# %%
def my_add(x, y):
    out = torch.empty_like(x)
    add(blocks_for(len(x), 256), 256, (x, y, out, len(x)))
    return out


# %% tests="add-cuda" points=2
pairs = [{"x": (length,), "y": (length,)} for length in (1, 3, 33, 256, 1000, 5000)]
lk.check_against(lambda x, y: x + y, my_add, pairs);

# %% [markdown]
# If you like, take the `if` away in both and check again. In the simulator the array itself complains, since it knows its length.
# A pointer does not; the sanitizer speaks up for it. On a GPU often nobody does, in either language.
#
# From here on you write CUDA C++, which reaches everything that the hardware can do.

# %% [markdown]
# ## More elements than threads
# There need not be a thread for every element. In a *grid-stride loop* you start as many threads as suit the GPU, and each
# takes several elements: that of its own number, then one a whole grid further, and so on.

# %%
lk.draw.grid_stride(n=22, blocks=2, threads=4)

# %% [markdown]
# In every step the whole grid reads one piece without gaps. A step is as long as the grid has threads; `gridDim.x` is the number
# of its blocks.
#
# **Write** `out = a * x + y` with such a loop. The launch has 4 blocks of 64 threads, whatever the length. A loop in C++ names
# its start, its condition and its step: `for (int i = 0; i < 10; i += 2) ...;` runs with `i` 0, 2, 4, 6 and 8.

# %% solution="grid-stride"
%%cuda --name axpy
__global__ void axpy(float a, const float* x, const float* y, float* out, int n) {
    // BEGIN SOLUTION
    int stride = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) out[i] = a * x[i] + y[i];
    // END SOLUTION
}

# %%
def my_axpy(x, y, a):
    out = torch.empty_like(x)
    axpy(4, 64, (a, x, y, out, len(x)))
    return out


# %% tests="grid-stride" points=3
cases = [{"x": (length,), "y": (length,), "a": -1.5} for length in (1, 3, 33, 256, 257, 1000, 5000)]
lk.check_against(lambda x, y, a: a * x + y, my_axpy, cases);

# %% [markdown]
# Had your step been too short, two threads would have written the same element. Both write the same number, so the result looks
# right, but the work is done twice. The sanitizer calls it a *race*: nothing says which of the two writes first.
#
# What is such a loop good for? A thread that takes many elements can carry something along in a register, a sum for example.
# Lab 02 begins there.

# %% [markdown]
# ## What a warp reads
# The GPU does not run threads one by one. 32 neighbours of a block form a *warp*, and its threads, called *lanes*, run the same
# instruction together. When they load, memory gets one *request* with 32 addresses.
#
# It answers in *sectors*: pieces of 32 bytes, 8 floats, that begin at multiples of 32. It never delivers less than one. If lane
# *i* reads `x[stride * i]`, this happens:

# %%
lk.draw.warp_reads(strides=[1, 2, 8])

# %% [markdown]
# The dots are lanes, the boxes are sectors. Blue are the 4 bytes that each lane asked for, orange is what moves along unasked.
# With stride 1 nothing is wasted; such a request is called *coalesced*.
#
# **Predict** the sectors of a request for strides 1, 2, 4, 8 and 32. The picture shows three of them.

# %% solution="predict-sectors"
stride_1 = stride_2 = stride_4 = stride_8 = stride_32 = None
### BEGIN SOLUTION
stride_1, stride_2, stride_4, stride_8 = 4, 8, 16, 32
stride_32 = 32        # one for each lane; there cannot be more
### END SOLUTION

# %% tests="predict-sectors" points=1
lk.check_prediction("sectors by stride", stride_1, stride_2, stride_4, stride_8, stride_32)

# %% [markdown]
# Counting by eye is slow. **Write** a function that counts: given the addresses of a request, one a lane, in how many different
# sectors do they lie? An address counts bytes: a float array that begins at 0 has its element `i` at `4 * i`. NumPy's
# `np.unique` may help.

# %% solution="sectors"
def sectors(addresses):
    """How many sectors a request touches; `addresses` is a NumPy array of 32 integers."""
    ### BEGIN SOLUTION
    return len(np.unique(addresses // 32))
    ### END SOLUTION


# %% [markdown]
# The tests count five requests: neighbours, neighbours that begin 4 bytes late, the same order backwards, all lanes at one
# address, and lanes in disorder.

# %% tests="sectors" points=2
lanes = np.arange(32)
requests = [4 * lanes, 4 * lanes + 4, 4 * lanes[::-1], 0 * lanes + 64, 4 * (lanes * 37 % 101)]
lk.check_prediction("sectors of requests", *[sectors(addresses) for addresses in requests])

# %% [markdown]
# Order costs nothing: backwards needs the same 4 sectors. An address that all lanes share needs one. A start that is off by one
# element costs a fifth sector. What is expensive is distance:

# %%
lk.draw.sectors_by_stride(sectors)

# %% [markdown]
# From stride 8 on every lane needs a sector of its own. Seven eighths of what moves was not asked for, and takes its time all the
# same. It is of use only if another request wants it soon: a *cache*, a small fast memory, keeps what was read last.

# %% [markdown]
# ## Rows and columns
# Memory is one long line. A matrix lies there row after row, and element `(row, col)` is number `row * cols + col`.

# %%
lk.draw.matrix_in_memory()

# %% [markdown]
# So neighbours in a row are neighbours in memory, and neighbours in a column are a whole row apart.
#
# Grids and blocks may have two axes too; a launch then names two sizes, as in `(32, 8)` threads. In such a block `threadIdx.x` runs
# from 0 to 31 and `threadIdx.y` from 0 to 7. Warps are filled along `x` first: here the 32 lanes of a warp have the same `y`, and
# `x` from 0 to 31. Hence the habit: **`x` counts columns, `y` counts rows.**

# %%
row, col = 3, 5
along_x = sectors(4 * (row * 1024 + lanes))      # 32 lanes in one row of a matrix with 1024 columns
along_y = sectors(4 * (lanes * 1024 + col))      # 32 lanes in one column
print(f"a piece of a row: {along_x} sectors; a piece of a column: {along_y} sectors")

# %% [markdown]
# A kernel that copies a matrix can read and write along rows. A *transpose* cannot do both: what is a row in `x` is a column in
# `out`. Here 8 lanes of a warp are drawn:

# %%
lk.draw.transpose_requests()

# %% [markdown]
# **Write** it. Element `(row, col)` of `x` becomes element `(col, row)` of `out`; `x` has `rows` rows of `cols` elements, `out` has
# `cols` rows of `rows`. A pointer takes one index, so count it out. Let the *reads* be coalesced. The launch has enough blocks
# for `cols` threads along `x` and `rows` along `y`; some stick out on both sides. C++ writes `&&` for *and*.

# %% solution="transpose"
%%cuda --name transpose
__global__ void transpose(const float* x, float* out, int rows, int cols) {
    // BEGIN SOLUTION
    int col = blockIdx.x * blockDim.x + threadIdx.x;
    int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row < rows && col < cols) out[col * rows + row] = x[row * cols + col];
    // END SOLUTION
}

# %%
def my_transpose(x):
    rows, cols = x.shape
    out = torch.empty(cols, rows, device=x.device)
    transpose((blocks_for(cols, 32), blocks_for(rows, 8)), (32, 8), (x, out, rows, cols))
    return out


# %% tests="transpose" points=3
lk.check_against(
    lambda x: x.t(),
    my_transpose,
    [{"x": shape} for shape in ((1, 1), (1, 33), (33, 1), (5, 70), (rows, cols), (130, 33))],
    mistakes={"x with its numbers in their old order": lambda x: x.reshape(x.t().shape)},
);

# %% [markdown]
# **Predict.** In a matrix of 1024 x 1024, how many sectors does one warp touch with the request that reads, and how many with the
# one that writes? Use `sectors`.

# %% solution="predict-transpose"
sectors_read = sectors_written = None
### BEGIN SOLUTION
sectors_read = sectors(4 * (row * 1024 + lanes))         # x[row][col], col running
sectors_written = sectors(4 * (lanes * 1024 + row))      # out[col][row], col running
### END SOLUTION

# %% tests="predict-transpose" points=1
lk.check_prediction("transpose requests", sectors_read, sectors_written)

# %% [markdown]
# Let `threadIdx.x` count rows instead, and the writes are coalesced while the reads are scattered. One of the two pays, as long as
# each thread writes what it has read itself. The way out is to hand elements from thread to thread within a block: *shared
# memory*, in lab 02.

# %% [markdown]
# ## Four floats at a time
# A coalesced request of floats moves 128 bytes, 4 for each lane. A lane may also ask for 16 bytes at once, a `float4`: four
# floats that lie side by side, called `.x`, `.y`, `.z` and `.w`. That saves no byte. It saves requests, each of which costs an
# instruction and a place in a queue. Drawn with 8 lanes:

# %%
lk.draw.vector_loads()

# %% [markdown]
# **Write** `out = a * x + y` once more, four elements at a time. `x4`, `y4` and `out4` are given: the same arrays, seen as `float4`s.
# `n / 4` of those are whole, since C++ drops the remainder when it divides integers. Read one with `float4 u = x4[i];`, use `u.x` and the
# others, and write one with `out4[i] = {1.0f, 2.0f, 3.0f, 4.0f};`. Up to three elements are left over at the end and need a
# loop of their own.

# %% solution="vector"
%%cuda --name axpy4
__global__ void axpy4(float a, const float* x, const float* y, float* out, int n) {
    const float4* x4 = reinterpret_cast<const float4*>(x);
    const float4* y4 = reinterpret_cast<const float4*>(y);
    float4* out4 = reinterpret_cast<float4*>(out);
    int thread = blockIdx.x * blockDim.x + threadIdx.x;
    int stride = gridDim.x * blockDim.x;
    // BEGIN SOLUTION
    for (int i = thread; i < n / 4; i += stride) {
        float4 u = x4[i], v = y4[i];
        out4[i] = {a * u.x + v.x, a * u.y + v.y, a * u.z + v.z, a * u.w + v.w};
    }
    for (int i = n / 4 * 4 + thread; i < n; i += stride) out[i] = a * x[i] + y[i];
    // END SOLUTION
}

# %%
def my_axpy4(x, y, a):
    out = torch.empty_like(x)
    axpy4(4, 64, (a, x, y, out, len(x)))
    return out


# %% tests="vector" points=3
cases = [{"x": (length,), "y": (length,), "a": -1.5} for length in (1, 3, 4, 33, 1000, 1002, 5003)]
lk.check_against(lambda x, y, a: a * x + y, my_axpy4, cases);

# %% [markdown]
# A `float4` must begin at a multiple of 16 bytes. A vector fresh from PyTorch does. A view of it that begins one element later
# does not:

# %%
x, y, out = torch.rand(n + 1), torch.rand(n + 1), torch.empty(n + 1)
lk.sanitize(axpy4, 4, 64, (2.0, x[1:], y[1:], out[1:], n))

# %% [markdown]
# On a GPU this error is final: the process cannot use the GPU any more. The ladder's versions look at the address first, and
# take one float at a time where they must.

# %% [markdown]
# ## Compare
# The sum of a vector reads every element once and computes next to nothing: bytes are its limit. But all threads want to add to
# the same total. An *atomic* addition cannot be interrupted by another thread's, so none is lost; those to one address happen
# one after another.
#
# - `v1_naive`: one thread an element, and an atomic addition each.
# - `v1_grid_stride`: at most 262,144 threads, in Numba. Each adds up its elements in a register, then one atomic addition.
# - `v3_warp`: such a loop with `float4`s, and threads that put their sums together without atomics.

# %%
versions = ["v1_naive", "v1_grid_stride", "v3_warp", "torch"]
lk.bench("sum", versions, n=[4**power for power in range(8, 15)]).plot()

# %% [markdown]
# Up to 256 Ki elements, which is 262,144, the two `v1` do the same additions and take the same time. From there on the grid-stride
# loop is flat: more elements, but no more atomic additions, and those are what it waits for. Only at the right end does reading
# begin to show. How the threads of `v3_warp` put their sums together is the next lab.

# %% [markdown]
# ## Still wasted
# - **One side of a transpose.** 32 sectors for 128 bytes, when reading or when writing.
# - **What a thread knows.** In your kernels each reads for itself, and what it has read is lost when it ends.
#
# Both have the same remedy: threads that talk to each other. What would you add next?
