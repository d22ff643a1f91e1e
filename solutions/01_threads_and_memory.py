# %% [markdown]
# # 01 Threads and memory
# A GPU starts a million threads as easily as a thousand. Two questions decide what comes of it: which thread takes which
# element, and what do 32 neighbours read when they read at the same time?
#
# You write your first kernels in two languages, Python with Numba CUDA and CUDA C++. Then you count what memory has to deliver.
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
# The grid consists of whole blocks, so a few threads at the end have no element. They must do nothing.
#
# Why blocks at all? The threads of one block sit on one *multiprocessor*, where they can share memory and wait for each other
# (lab 02). Blocks know nothing of each other. So a GPU may run them in any order, as many at once as there is room for: the
# same kernel fits a small GPU and a large one.
#
# **Predict.** Blocks of 256 threads, a vector of `n` elements. How many blocks does the launch need? Which element has thread 5
# of block 2? How many threads have none?

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
# *Numba* compiles Python functions, also for the GPU. *CUDA C++* is the GPU's own language. They share their words:
#
# | | Numba CUDA | CUDA C++ |
# |---|---|---|
# | a kernel | `@cuda.jit` above a `def` | `__global__ void` |
# | block, thread, size | `cuda.blockIdx.x`, `cuda.threadIdx.x`, `cuda.blockDim.x` | `blockIdx.x`, `threadIdx.x`, `blockDim.x` |
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
# PyTorch's own kernels wait. Without a GPU, Numba's simulator runs it, each thread a Python thread.

# %%
def my_add_numba(x, y):
    out = torch.empty_like(x)
    add_numba[blocks_for(len(x), 256), 256, stream(x)](as_numba(x), as_numba(y), as_numba(out))
    return out


# %% tests="add-numba" points=2
pairs = [{"x": (length,), "y": (length,)} for length in (1, 3, 33, 256, 1000)]
lk.check_against(lambda x, y: x + y, my_add_numba, pairs);

# %% [markdown]
# **Write** it again, in CUDA C++. Nothing is given but the arguments.

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
# If you like, take the `if` away and check again. The two languages complain in different ways: a Python array knows its own
# length, a pointer has nothing but the sanitizer to speak for it.
#
# From here on the book writes CUDA C++. Numba is good for a first thought; C++ has everything that the hardware has.

# %% [markdown]
# ## More elements than threads
# One thread an element is not a law. A *grid-stride loop* starts as many threads as suit the GPU, and each takes several
# elements: its own number, then one grid further, then one more.

# %%
lk.draw.grid_stride(n=22, blocks=2, threads=4)

# %% [markdown]
# In every step the whole grid reads one piece without gaps. How far one step goes is the number of all threads: a grid has
# `gridDim.x` blocks.
#
# **Write** `out = a * x + y` with such a loop. The check starts 4 blocks of 64 threads, whatever the length. A loop in C++ has
# three parts, a start, a condition and a step: `for (int i = 0; i < 10; i += 2)`.

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
# With a step that is too short two threads write the same element. Both write the same number, so the result looks right; the
# sanitizer calls it a *race*, because the order is nobody's.
#
# What is such a loop good for? A thread that takes many elements can keep something between them in a register, a sum for
# example. Lab 02 begins there.

# %% [markdown]
# ## What a warp reads
# Threads do not run one by one. 32 neighbours form a *warp*, and its 32 *lanes* run the same instruction at the same time. A
# load is then one *request* with 32 addresses.
#
# Memory answers in *sectors*, aligned pieces of 32 bytes, 8 floats each. It never delivers less than one. If lane *i* reads
# `x[stride * i]`, this happens:

# %%
lk.draw.warp_reads(strides=[1, 2, 8])

# %% [markdown]
# The dots are lanes, the dark marks are the 4 bytes that each of them asked for, and the orange is what moves along unasked. With
# stride 1 nothing is wasted. Such a request is called *coalesced*.
#
# **Predict** the sectors of a request for strides 1, 2, 4, 8 and 32. Three of them can be seen in the picture.

# %% solution="predict-sectors"
stride_1 = stride_2 = stride_4 = stride_8 = stride_32 = None
### BEGIN SOLUTION
stride_1, stride_2, stride_4, stride_8 = 4, 8, 16, 32
stride_32 = 32        # one for each lane; there cannot be more
### END SOLUTION

# %% tests="predict-sectors" points=1
lk.check_prediction("sectors by stride", stride_1, stride_2, stride_4, stride_8, stride_32)

# %% [markdown]
# Counting by eye is slow. **Write** a function that counts: given the byte addresses of a request, one a lane, how many different
# sectors do they lie in? Each lane reads 4 bytes that lie in one sector. NumPy's `np.unique` may help.

# %% solution="sectors"
def sectors(addresses):
    """How many 32-byte sectors a request touches; `addresses` is a NumPy array of 32 whole numbers, in bytes."""
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
# The order within a sector costs nothing, and an address shared by all lanes costs one sector. A start that is off by one element
# costs a fifth sector. What is expensive is distance:

# %%
lk.draw.sectors_by_stride(sectors)

# %% [markdown]
# From stride 8 on every lane needs a sector of its own. Seven eighths of what memory delivers is thrown away, and the kernel takes
# as long as if it had asked for all of it, unless somebody uses the rest while it is still in a cache.

# %% [markdown]
# ## Rows and columns
# Memory has no rows. A matrix lies there row after row, and element `(row, col)` is number `row * cols + col`.

# %%
lk.draw.matrix_in_memory()

# %% [markdown]
# So neighbours in a row are neighbours in memory, and neighbours in a column are a whole row apart.
#
# Blocks may have two axes too. In a block of 32 x 8 threads, `threadIdx.x` runs from 0 to 31 and `threadIdx.y` from 0 to 7. A warp
# is filled along `x` first: its 32 lanes have the same `y` and neighbouring `x`. Hence the habit: **`x` counts columns, `y` counts
# rows.**

# %%
row, col = 3, 5
along_x = sectors(4 * (row * 1024 + lanes))      # 32 lanes in one row of a matrix with 1024 columns
along_y = sectors(4 * (lanes * 1024 + col))      # 32 lanes in one column
print(f"a piece of a row: {along_x} sectors; a piece of a column: {along_y} sectors")

# %% [markdown]
# A kernel that copies a matrix can always read and write along rows. A *transpose* cannot: what is a row in `x` is a column in
# `out`.

# %%
lk.draw.transpose_requests()

# %% [markdown]
# **Write** it: `out[col][row] = x[row][col]`, so `x` has `rows` rows of `cols` elements and `out` has `cols` rows of `rows`. Let the
# *reads* be coalesced. The launch has enough blocks for `cols` threads along `x` and `rows` threads along `y`; some stick out on
# both sides.

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
# **Predict.** A matrix of 1024 x 1024. How many sectors does one warp read with its request, and how many does it write? Your
# function `sectors` is there to be used.

# %% solution="predict-transpose"
sectors_read = sectors_written = None
### BEGIN SOLUTION
sectors_read = sectors(4 * (row * 1024 + lanes))         # x[row][col], col running
sectors_written = sectors(4 * (lanes * 1024 + row))      # out[col][row], col running
### END SOLUTION

# %% tests="predict-transpose" points=1
lk.check_prediction("transpose requests", sectors_read, sectors_written)

# %% [markdown]
# Swap the roles of `x` and `y`, and the writes are coalesced while the reads are scattered. One of the two always pays, as long as
# each thread writes what it has read itself. The way out is to hand elements from thread to thread within a block: *shared
# memory*, in lab 02.

# %% [markdown]
# ## Four floats at a time
# A coalesced request of floats moves 128 bytes. A lane may also ask for 16 bytes at once, a `float4`: four floats that lie
# together, called `.x`, `.y`, `.z` and `.w`. No byte is saved. What is saved is requests, and each of them costs an instruction
# and a place in a queue.

# %%
lk.draw.vector_loads()

# %% [markdown]
# **Write** `out = a * x + y` once more, four elements at a time. `x4`, `y4` and `out4` are the same arrays seen as `float4`; there are
# `n / 4` of them, rounded down. A `float4` is written as `out4[i] = {1.0f, 2.0f, 3.0f, 4.0f};`. The last elements, up to three, do not
# fill one: they need a loop of their own.

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
# A `float4` must begin at a multiple of 16 bytes. A vector that PyTorch makes does; a view of it that begins one element later does
# not.

# %%
x, y, out = torch.rand(n + 1), torch.rand(n + 1), torch.empty(n + 1)
lk.sanitize(axpy4, 4, 64, (2.0, x[1:], y[1:], out[1:], n))

# %% [markdown]
# On a GPU that is an error after which the process cannot use the GPU any more. The kernels of this book look at the address
# first, and take one float at a time where they must.

# %% [markdown]
# ## Compare
# The sum of a vector reads every element once and computes next to nothing: bytes are its limit. `v1_naive` has one thread an
# element, `v1_grid_stride` is a grid-stride loop in Numba, `v3_warp` reads `float4`s in such a loop.

# %%
lk.bench("sum", ["v1_naive", "v1_grid_stride", "v3_warp", "torch"], n=[2**power for power in range(16, 30, 2)]).plot()

# %% [markdown]
# The grid-stride loop has a flat stretch: however many elements there are, 262,144 threads at most end with one addition each to
# the same address, and those additions wait for each other. Only when reading takes longer than that does the line begin to climb.
# How the threads of `v3_warp` put their sums together is the next lab.

# %% [markdown]
# ## Still wasted
# - **The scattered side of a transpose.** 32 sectors for 128 bytes, on one side or the other.
# - **Everything that two threads both need.** In your kernels each thread reads for itself, and what it knows is lost when it ends.
#
# Both want the same remedy: threads that talk to each other. What would you add next?
