# %% [markdown]
# # 01 Threads and memory
# A GPU runs thousands of threads at once. Two questions decide what comes of it: which thread takes which element, and what
# has memory to deliver when 32 neighbours ask at the same time?
#
# You write your first kernels, in Python with Numba CUDA and in CUDA C++. Then you look at them through a *profiler*, which
# counts what memory delivers, line by line. The last exercises are graded by what it counts.
#
# You need lab 00.

# %% tags=["parameters"] again={"n": 777, "rows": 33, "cols": 130}
n = 1000           # elements of a vector; odd sizes welcome
rows = 45          # and of a matrix
cols = 70

# %%
%load_ext labkernels
import pandas
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
# can share memory and wait for each other. Blocks do not wait for each other, so a GPU may run them in any order, as many at once
# as fit.
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
# Below, `as_numba` hands a PyTorch tensor to Numba without a copy, and `stream` puts the kernel into the queue where PyTorch's own
# kernels wait. Without a GPU Numba's simulator runs it, each GPU thread as a thread of Python.

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
# A pointer does not; the sanitizer speaks up for it.
#
# From here on you write CUDA C++, which reaches everything that the hardware can do.

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
# **Predict** the sectors of the five requests in this kernel. `lane` is 0 to 31.

# %%
%%cuda --name requests
__global__ void requests(const float* x, float* out) {
    int lane = threadIdx.x;
    float sum = x[4 * lane];
    sum += x[32 * lane];
    sum += x[31 - lane];
    sum += x[lane + 1];
    sum += x[0];
    out[lane] = sum;
}

# %% solution="predict-sectors"
stride_4 = stride_32 = backwards = one_late = one_for_all = None
### BEGIN SOLUTION
stride_4 = 16
stride_32 = 32        # one for each lane; there cannot be more
backwards = 4         # the same 4 sectors in another order
one_late = 5          # the last float lies in the next sector
one_for_all = 1
### END SOLUTION

# %% tests="predict-sectors" points=1
lk.check_prediction("sectors of requests", stride_4, stride_32, backwards, one_late, one_for_all)

# %% [markdown]
# Now ask the profiler. `%profile` runs a launch in the emulator, writes down every request of every warp, and shows your source
# with the counts beside it. They are exact, and the same on every machine. The deeper a colour, the more is wasted.

# %%
x, out = torch.rand(1024), torch.empty(32)
%profile requests(1, 32, (x, out))

# %% [markdown]
# *per request* is what you predicted. *active* is the share of lanes at work. Order costs nothing, one address for all costs
# one sector, a start off by one float costs a fifth. What is expensive is distance.
#
# Change an index, run both cells again, and see.

# %% [markdown]
# ## More elements than threads
# There need not be a thread for every element. Here 256 threads share out a vector of any length. Each takes a piece of its own,
# as cores of a CPU would:

# %%
%%cuda --name scale_pieces
__global__ void scale_pieces(float a, const float* x, float* out, int n) {
    int threads = gridDim.x * blockDim.x;                   // gridDim.x is the number of blocks
    int thread = blockIdx.x * blockDim.x + threadIdx.x;
    int each = (n + threads - 1) / threads;                 // elements for a thread, rounded up
    for (int k = 0; k < each; ++k) {
        int i = thread * each + k;
        if (i < n) out[i] = a * x[i];
    }
}

# %% [markdown]
# **Predict.** 2048 elements, 4 blocks of 64 threads. How many sectors does a request of `x[i]` touch? And how many times as many
# bytes move as in a kernel that wastes none?

# %% solution="predict-pieces"
piece_sectors = times_the_bytes = None
### BEGIN SOLUTION
piece_sectors = 32         # 8 elements each, so neighbouring lanes are 32 bytes apart
times_the_bytes = 8        # 32 sectors for 128 bytes, which fit in 4
### END SOLUTION

# %% tests="predict-pieces" points=1
lk.check_prediction("sectors of pieces", piece_sectors, times_the_bytes)

# %%
x = torch.rand(2048)
pieces = lk.profile(scale_pieces, 4, 64, (2.0, x, torch.empty(2048), 2048))
pieces

# %% [markdown]
# `lk.profile` is the magic as a function. What it returns can draw a request of a line, lane by lane:

# %%
pieces.plot_line("x[i]", "global_load")

# %% [markdown]
# 32 lanes, 32 sectors, and of each one float. The next turn of the loop wants the next float, and each sector moves again, eight
# times in all. (A *cache*, a small fast memory that keeps what was read last, may soften this, if nobody else needs its room.)
#
# So share out differently: in every turn the whole grid takes one stretch without gaps.

# %%
lk.draw.grid_stride(n=22, blocks=2, threads=4)

# %% [markdown]
# **Write** the index, and see 32 become 4. Nothing else changes.

# %% solution="grid-stride"
%%cuda --name scale
__global__ void scale(float a, const float* x, float* out, int n) {
    int threads = gridDim.x * blockDim.x;
    int thread = blockIdx.x * blockDim.x + threadIdx.x;
    int each = (n + threads - 1) / threads;
    for (int k = 0; k < each; ++k) {
        // BEGIN SOLUTION
        int i = thread + k * threads;
        // END SOLUTION
        if (i < n) out[i] = a * x[i];
    }
}

# %%
def my_scale(x, a):
    out = torch.empty_like(x)
    scale(4, 64, (a, x, out, len(x)))
    return out


# %% [markdown]
# `check_counters` judges the result and then what the profiler counts: here, at most 1.05 times the bytes of `x` and `out`.

# %% tests="grid-stride" points=3
cases = [{"x": (length,), "a": -1.5} for length in (1, 3, 33, 256, 257, 1000, 2048, 5000)]
lk.check_against(lambda x, a: a * x, my_scale, cases)
lk.check_counters(lambda x, a: a * x, my_scale, {"x": (2048,), "a": -1.5}, bytes_at_most=1.05);

# %%
%profile scale(4, 64, (2.0, x, torch.empty(2048), 2048))

# %% [markdown]
# This is called a *grid-stride loop*, and mostly written so:
#
#     for (int i = thread; i < n; i += threads) out[i] = a * x[i];
#
# What is it good for? A thread that takes many elements can carry something along in a register, a sum for example. Lab 02
# begins there.

# %% [markdown]
# ## Rows and columns
# Memory is one long line. A matrix lies there row after row, and element `(row, col)` is number `row * cols + col`.

# %%
lk.draw.matrix_in_memory()

# %% [markdown]
# So neighbours in a row are neighbours in memory, and neighbours in a column are a whole row apart.
#
# Grids and blocks may have two axes too; a launch then names two sizes, as in `(32, 8)` threads. Warps are filled along `x` first:
# here the 32 lanes of a warp have the same `threadIdx.y`, and `threadIdx.x` from 0 to 31. Hence the habit: **`x` counts columns,
# `y` counts rows.**
#
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
shapes = [{"x": shape} for shape in ((1, 1), (1, 33), (33, 1), (5, 70), (rows, cols), (130, 33))]
old_order = {"x with its numbers in their old order": lambda x: x.reshape(x.t().shape)}
lk.check_against(lambda x: x.t(), my_transpose, shapes, mistakes=old_order);

# %% [markdown]
# **Predict.** In a matrix of 128 x 128, how many sectors does a request touch that reads, and how many one that writes?

# %% solution="predict-transpose"
sectors_read = sectors_written = None
### BEGIN SOLUTION
sectors_read = 4          # 32 neighbours in a row
sectors_written = 32      # 32 neighbours in a column
### END SOLUTION

# %% tests="predict-transpose" points=1
lk.check_prediction("transpose requests", sectors_read, sectors_written)

# %%
square, turned = torch.rand(128, 128), torch.empty(128, 128)
%profile transpose((4, 16), (32, 8), (square, turned, 128, 128))

# %% [markdown]
# Let `threadIdx.x` count rows instead, and the writes are coalesced while the reads are scattered. One of the two pays, as long as
# each thread writes what it has read itself.

# %% [markdown]
# ## Threads that hand over
# The way out is a small memory on the chip that the threads of a block have in common, *shared memory*. A block reads a *tile* of
# the matrix along its rows, and writes it along the rows of `out`.

# %%
lk.draw.transpose_tile()

# %% [markdown]
# `__shared__ float tile[32][32];` declares it, `tile[row][col]` is an element. The thread that reads an element is not the one that
# writes it, so nobody may write before all have read. `__syncthreads()` is a *barrier*: no thread of the block goes on until all
# threads of the block have come to it, those at the edge that have nothing to do among them.
#
# **Write** it, for a block of 32 x 32 threads, in three steps: read an element of `x` into the tile, wait, and write an element of
# `out` from the tile. In both, `c` runs along a row of the matrix. The tile begins at `(row, col)` of `x`; where does it begin in
# `out`? Mind the edges, twice. `-D WIDTH=32` puts 32 wherever the code says `WIDTH`.

# %% solution="tile"
%%cuda --name tile -D WIDTH=32
__global__ void tile(const float* x, float* out, int rows, int cols) {
    __shared__ float tile[32][WIDTH];
    int r = threadIdx.y, c = threadIdx.x;
    int row = 32 * blockIdx.y, col = 32 * blockIdx.x;    // where the tile begins in x
    // BEGIN SOLUTION
    if (row + r < rows && col + c < cols) tile[r][c] = x[(row + r) * cols + col + c];
    __syncthreads();
    if (col + r < cols && row + c < rows) out[(col + r) * rows + row + c] = tile[c][r];
    // END SOLUTION
}

# %%
def with_tile(kernel):
    def my_transpose(x):
        rows, cols = x.shape
        out = torch.empty(cols, rows, device=x.device)
        kernel((blocks_for(cols, 32), blocks_for(rows, 32)), (32, 32), (x, out, rows, cols))
        return out

    return my_transpose


# %% tests="tile" points=4
shapes = [{"x": shape} for shape in ((1, 1), (1, 33), (33, 1), (rows, cols), (64, 96), (130, 33))]
lk.check_against(lambda x: x.t(), with_tile(tile), shapes)
lk.check_counters(lambda x: x.t(), with_tile(tile), {"x": (64, 96)}, bytes_at_most=1.05);

# %%
%profile tile((4, 4), (32, 32), (square, turned, 128, 128))

# %% [markdown]
# Nothing of global memory is wasted any more. But something new is red.

# %% [markdown]
# ## Banks
# Shared memory has 32 *banks*. Word `w`, 4 bytes, lies in bank `w % 32`, and each bank gives one word at a time. If the lanes of
# a request want different words of the same bank, the request takes several *passes*; every pass after the first is called a
# *bank conflict*. Lanes that want the same word get it in one pass: that is a *broadcast*, and no conflict.
#
# **Predict** the passes of these five requests.

# %%
%%cuda --name passes
__global__ void passes(float* out) {
    __shared__ float word[1024];
    int lane = threadIdx.x;
    for (int i = 0; i < 32; ++i) word[32 * i + lane] = lane;
    __syncwarp();    // a barrier for one warp
    float sum = word[lane];
    sum += word[2 * lane];
    sum += word[32 * lane];
    sum += word[33 * lane];
    sum += word[7];
    out[lane] = sum;
}

# %% solution="predict-passes"
stride_1 = stride_2 = stride_32 = stride_33 = same_word = None
### BEGIN SOLUTION
stride_1 = 1
stride_2 = 2          # even banks only, two words in each
stride_32 = 32        # bank 0 for all
stride_33 = 1         # banks 0, 1, 2, ...
same_word = 1         # a broadcast
### END SOLUTION

# %% tests="predict-passes" points=1
lk.check_prediction("passes of requests", stride_1, stride_2, stride_32, stride_33, same_word)

# %%
%profile passes(1, 32, (out,))

# %% [markdown]
# *conflicts* is one less than your passes. And the tile?

# %%
lk.profile(tile, (4, 4), (32, 32), (square, turned, 128, 128)).plot_line("= tile[", "shared_load")

# %% [markdown]
# The lanes walk down a column of the tile, 32 words apart: all in one bank. Two ways lead out, drawn here with 8 banks. The
# number in a cell is its bank, and the outlined cells hold a column:

# %%
lk.draw.tile_banks()

# %% [markdown]
# *Padding* makes rows one word longer, and nobody uses that word. Compile your kernel with other widths:

# %%
for width in (32, 33, 34, 36):
    wider = lk.Kernel(tile.source.text, "tile", defines={"WIDTH": width})
    counted = lk.profile(wider, (4, 4), (32, 32), (square, turned, 128, 128))
    print(f"{width} words a row: {counted.bank_conflicts:6} bank conflicts, {128 * width} bytes of shared memory")

# %% [markdown]
# A *swizzle* needs no room. It keeps each row's elements in another order, so that a column meets every bank. Labs on tensor
# cores cannot do without.
#
# **Write** it: `place` says in which column of its row an element is kept. Every row must use each of its 32 places once. In C++,
# `a ^ b` is *exclusive or*: of each binary digit, 1 where the two differ.

# %% solution="swizzle"
%%cuda --name swizzled
__device__ int place(int row, int col) {
    // BEGIN SOLUTION
    return col ^ row;
    // END SOLUTION
}

__global__ void swizzled(const float* x, float* out, int rows, int cols) {
    __shared__ float tile[32][32];
    int r = threadIdx.y, c = threadIdx.x;
    int row = 32 * blockIdx.y, col = 32 * blockIdx.x;
    if (row + r < rows && col + c < cols) tile[r][place(r, c)] = x[(row + r) * cols + col + c];
    __syncthreads();
    if (col + r < cols && row + c < rows) out[(col + r) * rows + row + c] = tile[c][place(c, r)];
}

# %% tests="swizzle" points=3
lk.check_against(lambda x: x.t(), with_tile(swizzled), shapes)
lk.check_counters(lambda x: x.t(), with_tile(swizzled), {"x": (64, 96)}, bytes_at_most=1.05, bank_conflicts=0);

# %%
lk.profile(swizzled, (4, 4), (32, 32), (square, turned, 128, 128)).plot_line("= tile[", "shared_load")

# %% [markdown]
# ## Is it true?
# A profiler that counts in an emulator could be wrong. So four such transposes of 128 x 128 have run on an H200, under NVIDIA's
# own profiler, Nsight Compute, which reads counters in the hardware. Beside them, yours:

# %%
from labkernels.lab.measured import measured_file

padded = lk.Kernel(tile.source.text, "tile", defines={"WIDTH": 33})
hardware = pandas.read_csv(measured_file("profiler")).set_index(["kernel", "counter"])["ncu"]
table = {}
for name, kernel in {"naive": transpose, "tile": tile, "padded": padded, "swizzled": swizzled}.items():
    grid, block = ((4, 16), (32, 8)) if kernel is transpose else ((4, 4), (32, 32))
    counted = lk.profile(kernel, grid, block, (square, turned, 128, 128))
    table[name] = {
        ("store sectors", "yours"): counted.global_store_sectors,
        ("store sectors", "H200"): hardware[f"lk_transpose_{name}", "global_store_sectors"],
        ("bank conflicts", "yours"): counted.bank_conflicts,
        ("bank conflicts", "H200"): hardware[f"lk_transpose_{name}", "shared_load_conflicts"],
    }
pandas.DataFrame(table).T

# %% [markdown]
# ## Four floats at a time
# A coalesced request of floats moves 128 bytes, 4 for each lane. A lane may also ask for 16 bytes at once, a `float4`: four
# floats that lie side by side, called `.x`, `.y`, `.z` and `.w`.

# %%
lk.draw.vector_loads()

# %%
%%cuda --name scale4
__global__ void scale4(float a, const float* x, float* out, int n) {
    const float4* x4 = reinterpret_cast<const float4*>(x);    // the same array, seen as float4s
    float4* out4 = reinterpret_cast<float4*>(out);
    int threads = gridDim.x * blockDim.x;
    int thread = blockIdx.x * blockDim.x + threadIdx.x;
    for (int i = thread; i < n / 4; i += threads) {
        float4 u = x4[i];
        out4[i] = make_float4(a * u.x, a * u.y, a * u.z, a * u.w);
    }
    for (int i = n / 4 * 4 + thread; i < n; i += threads) out[i] = a * x[i];    // up to three are left over
}

# %% [markdown]
# **Predict.** For 2048 floats, how many requests to load does `scale` make, and how many `scale4`? How many sectors has one of `scale4`?

# %% solution="predict-vector"
scale_requests = scale4_requests = scale4_sectors = None
### BEGIN SOLUTION
scale_requests = 2048 // 32
scale4_requests = 2048 // 128
scale4_sectors = 16
### END SOLUTION

# %% tests="predict-vector" points=1
lk.check_prediction("requests with float4", scale_requests, scale4_requests, scale4_sectors)

# %%
%profile scale4(4, 64, (2.0, x, torch.empty(2048), 2048))

# %% [markdown]
# Not a byte less, but a quarter of the requests, each of which costs an instruction and a place in a queue. One thing to mind: a
# `float4` must begin at a multiple of 16 bytes. A vector fresh from PyTorch does, a view that begins one element later does not:

# %%
lk.sanitize(scale4, 4, 64, (2.0, x[1:], torch.empty(2048), 2047))

# %% [markdown]
# On a GPU this error is final: the process cannot use the GPU any more.
#
# ## Still wasted
# - **Room.** Padding costs 128 bytes a tile; the swizzle costs an instruction.
# - **What a thread knows.** Threads hand over elements here. Could they also hand over sums?
#
# What would you add next?
