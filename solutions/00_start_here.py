# %% [markdown]
# # 00 Start here
# In this book you write GPU kernels. You begin with one line, and a few labs later you write flash attention.
#
# This first lab shows where your code runs, how a lab goes, what happens when a kernel is wrong, and how fast it could be at
# best. You need Python and a little PyTorch. Run a cell with Shift+Enter and go on from top to bottom.

# %% tags=["parameters"] again={"seed": 7, "n": 3000001}
seed = 0
n = 2**24          # elements of the long vectors, about 17 million

# %%
%load_ext labkernels
import torch

import labkernels as lk

# %% [markdown]
# ## Where does your code run?
# A *GPU* is a processor with thousands of small arithmetic units and a fast memory of its own. If this machine has none, an
# *emulator* runs the same source on the CPU. You miss nothing but the stopwatch.

# %%
lk.draw.where_code_runs()

# %%
from labkernels.lab.machine import describe_machine

print("On this machine kernels run", describe_machine()["kernels run"])

# %% [markdown]
# In a terminal, `labkernels info` tells more. Copy what it says when you ask for help.

# %% [markdown]
# ## A first kernel
# A *kernel* is a function that many *threads* run at the same time. All of them run the same lines. What differs is their
# number: thread *i* works on element *i*.

# %%
lk.draw.one_thread_each()

# %% [markdown]
# Here is that kernel, in CUDA C++: C++ with a few words added. The first line of the cell, `%%cuda`, hands the rest to the
# compiler and gives Python a function called `square`.

# %%
%%cuda --name square
__global__ void square(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;    // the number of this thread
    if (i < n) y[i] = x[i] * x[i];
}

# %% [markdown]
# - `__global__` marks a kernel.
# - `void`: it returns nothing. What it computes, it writes into an array.
# - `const float* x` is a *pointer*: the place where an array of float32 numbers begins. It does not know where the array ends,
#   so `n` comes along. `const` promises that the kernel only reads it.
# - `int i = ...` is the number of the thread, an integer. Lab 01 takes this formula apart.
# - `if (i < n)`: threads come in *blocks* of equal size, and the last block may reach past the last element.
#
# The grey line below the cell comes from the GPU's compiler, which needs no GPU. A *register* holds one number of one thread;
# *spills* are numbers for which no register was left. `sm_80` and `sm_90a` are two generations of GPUs, that of the A100 and
# that of the H200.
#
# Now start it. `square(blocks, threads, arguments)` is a *launch*: so many blocks, each of so many threads.

# %%
for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
    x = torch.arange(8.0, device=device)
    y = torch.empty_like(x)               # memory for 8 numbers, not written yet
    square(1, 8, (x, y, 8))               # 1 block of 8 threads
    print(device, y.tolist())

# %% [markdown]
# The tensors lie in the CPU's memory, so the emulator ran it. Where there is a GPU, the loop goes around once more and the GPU
# runs it, from the same source.
#
# Change the kernel to `x[i] * x[i] * x[i]` and run both cells again. All code in this book is yours to break.

# %% [markdown]
# ## The rhythm of a lab
# Each idea takes the same steps. A **picture** shows it. You **predict** what it costs. You **write** the part that matters.
# You **check** it. You **compare** it with other versions, and with the best that the machine could do.
#
# Here they are once, for `out = a * x + y`, where `x` and `y` are long vectors and `a` is one number. (It is called *axpy*,
# "a x plus y".) What does one thread need?

# %%
lk.draw.axpy_traffic()

# %% [markdown]
# Two things cost time. *Bytes* have to move between the GPU's memory and its arithmetic units; a float32 has 4. *FLOPs*,
# floating-point operations, have to be computed; a multiplication is one and an addition is one.
#
# **Predict** both, for whole vectors of `n` elements. Write a formula with `n` in it. A wrong prediction costs nothing; try as
# often as you like.

# %% solution="predict-cost"
bytes_moved = flops = None
### BEGIN SOLUTION
bytes_moved = 3 * 4 * n      # x and y are read, out is written
flops = 2 * n                # one multiplication, one addition
### END SOLUTION

# %% tests="predict-cost" points=1
lk.check_prediction("axpy cost", bytes_moved, flops, n=n)

# %% [markdown]
# **Write** the line that is missing, for element `i`. A statement in C++ ends with a semicolon.

# %% solution="axpy"
%%cuda --name axpy
__global__ void axpy(float a, const float* x, const float* y, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        // BEGIN SOLUTION
        out[i] = a * x[i] + y[i];
        // END SOLUTION
    }
}

# %% [markdown]
# Python makes the output and starts enough threads, in blocks of 256.

# %%
def my_axpy(x, y, a):
    out = torch.empty_like(x)
    blocks = -(-len(x) // 256)        # the division rounded up
    axpy(blocks, 256, (a, x, y, out, len(x)))
    return out


# %% [markdown]
# **Check** it. The check gets the right answer as a line of PyTorch, your function, and the lengths of the vectors. It fills
# them with random numbers and compares every element with what PyTorch computes in float64, which has twice as many digits.
# `mistakes` are wrong answers that it knows by name.

# %% tests="axpy" points=1
lengths = [1, 3, 33, 256, 1000, 5000]
cases = [{"x": (length,), "y": (length,), "a": 2.5} for length in lengths]
lk.check_against(
    lambda x, y, a: a * x + y,
    my_axpy,
    cases,
    mistakes={
        "a * x: y is not added": lambda x, y, a: a * x,
        "x + y: a is missing": lambda x, y, a: x + y,
        "a * (x + y)": lambda x, y, a: a * (x + y),
    },
);

# %% [markdown]
# You have written a GPU kernel. Before we compare it with anything, see what wrong ones look like. You will meet many.

# %% [markdown]
# ## A result that is wrong
# Here is the same kernel, started with too few threads: the division is rounded down instead of up. What will the check say?

# %%
def too_few_threads(x, y, a):
    out = torch.empty_like(x)
    axpy(len(x) // 256, 256, (a, x, y, out, len(x)))
    return out


try:
    lk.check_against(lambda x, y, a: a * x + y, too_few_threads, [{"x": (1000,), "y": (1000,), "a": 2.5}])
except lk.CheckFailed as failed:
    print(failed)

# %% [markdown]
# A check that fails is an exception; here it was caught and printed. Read it from the top.
#
# - `not_written` is the *reason*. Others are `mismatch`, a wrong number, and `not_finite`, an infinity or "not a number".
# - `index 768` is the first element that is wrong. 768 is 3 times 256: three full blocks did their work.
# - *case* says which input it was, so that you can make the same one.
# - *map* is the whole result at a glance. Each mark stands for a piece of it, and the end is missing.
#
# Where the check knows the mistake, a *hint* names it.

# %% [markdown]
# ## A kernel that leaves its array
# The second kind of mistake is more dangerous. This kernel smooths a curve: each element becomes the mean of itself and its two
# neighbours.

# %%
lk.draw.smoothing_windows()

# %%
%%cuda --name smooth_careless
__global__ void smooth_careless(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = (x[i - 1] + x[i] + x[i + 1]) / 3;
}

# %% [markdown]
# In Python `x[-1]` is the last element and `x[n]` is an error. C++ checks neither: it takes whatever lies there in memory, and
# the result may even look right.
#
# The *sanitizer* runs a kernel in the emulator and watches every access.

# %%
x, out = torch.rand(1000), torch.empty(1000)
lk.sanitize(smooth_careless, 4, 256, (x, out, 1000))

# %% [markdown]
# It names the kind of mistake, the thread, the element and the line. One finding a line of source: `x[1000]` waits until
# `x[-1]` is mended. Every check begins with the sanitizer, on small inputs, so your mistakes meet it before they meet a GPU.
#
# **Fix** the kernel. The first and the last element lack a neighbour: let them keep their value. C++ writes *or* as `||`, and
# `else` without a colon.

# %% solution="smooth"
%%cuda --name smooth
__global__ void smooth(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        // BEGIN SOLUTION
        if (i == 0 || i == n - 1) out[i] = x[i];
        else out[i] = (x[i - 1] + x[i] + x[i + 1]) / 3;
        // END SOLUTION
    }
}

# %%
def smoothed(x):
    """What the kernel should compute, in PyTorch."""
    out = x.clone()
    out[1:-1] = (x[:-2] + x[1:-1] + x[2:]) / 3
    return out


def my_smooth(x):
    out = torch.empty_like(x)
    smooth(-(-len(x) // 256), 256, (x, out, len(x)))
    return out


# %% tests="smooth" points=2
lk.check_against(
    smoothed,
    my_smooth,
    [{"x": (length,)} for length in (1, 2, 3, 256, 1000)],
    mistakes={
        "x itself: no element is smoothed": lambda x: x,
        "x[i - 1] + x[i] + x[i + 1] / 3: the division comes first": lambda x: torch.cat(
            [x[:1], x[:-2] + x[1:-1] + x[2:] / 3, x[-1:]]
        ),
        "0 between the ends: 1 / 3 of two integers is 0": lambda x: torch.cat([x[:1], 0 * x[1:-1], x[-1:]]),
    },
);

# %% [markdown]
# **See** what it does to a noisy curve, once and 20 times.

# %%
generator = torch.Generator().manual_seed(seed)
curve = torch.sin(torch.arange(120) / 12) + 0.3 * torch.randn(120, generator=generator)
smoother = curve
for _ in range(20):
    smoother = my_smooth(smoother)
lk.draw.curves({"x": curve, "once": my_smooth(curve), "20 times": smoother})

# %% [markdown]
# ## How fast could it be?
# A GPU has two ceilings: how many bytes it can move in a second, and how many FLOPs it can compute in a second. Here are those
# of an H200, the GPU whose figures this book shows. Dashed is what its data sheet promises, filled is what we measured by
# copying a long vector and by multiplying large matrices: the fastest that anybody's product ever went on it.

# %%
lk.draw.ceilings()

# %% [markdown]
# T is tera, a million millions. On the right are kinds of numbers. float32 goes through ordinary arithmetic units. The others
# keep fewer digits and go through *tensor cores*, units that multiply small matrices at once. Until you meet those, float32 is
# the bar that counts.
#
# A kernel can move bytes and compute at the same time, and the slower of the two decides. To reach both ceilings, how many FLOPs
# must it do for each byte that it moves?

# %%
bytes_per_s, flops_per_s = 4.8e12, 67e12      # the data sheet's, float32
print(f"{flops_per_s / bytes_per_s:.0f} FLOPs a byte")

# %% [markdown]
# **Predict.** How many FLOPs a byte does `axpy` do? Which ceiling does it meet, `"bytes"` or `"FLOPs"`? And how many
# milliseconds does it take at least, by the two rates in the cell above? Within 1% is right.

# %% solution="predict-limit"
flops_per_byte = ceiling = least_ms = None
### BEGIN SOLUTION
flops_per_byte = 2 / 12
ceiling = "bytes"
least_ms = 3 * 4 * n / bytes_per_s * 1000
### END SOLUTION

# %% tests="predict-limit" points=2
lk.check_prediction("axpy limit", flops_per_byte, ceiling, least_ms, n=n)

# %% [markdown]
# Both ceilings, as measured, fit into one picture, the *roofline*. Further right, a kernel computes more with each byte; further
# up, more in each second. The black line is as high as the ceilings allow: on its slope a kernel waits for bytes, on its flat
# part for FLOPs.

# %%
lk.draw.roofline(
    {"your axpy, at best": (2 * n, 12 * n)},
    ladder=[
        ("sum", "v3_warp", {"n": 2**26}),
        ("attention", "v1_naive_cuda", {"seq_len": 4096, "head_dim": 128}),
        ("attention", "v3_tiled", {"seq_len": 4096, "head_dim": 128}),
    ],
)

# %% [markdown]
# The ring is your prediction: between 1% and 2% of what the arithmetic units could do. No trick inside the kernel changes
# that, since its 12 bytes an element have to move.
#
# The dots are kernels of this book, placed by the bytes that no version can avoid. A dot near the line cannot become much
# faster; a dot far below it can. The two on the right compute the same attention. The lower one belongs to lab 04, the upper
# one to lab 05.

# %% [markdown]
# ## Compare
# An operation has a *ladder*: versions of it, from the first that works to one near the limit, each with one new idea. Here is
# that of the sum of a vector. Lab 02 explains the words in it.

# %%
lk.ops["sum"].variants

# %%
lk.bench("sum", ["v1_naive", "v2_tree", "v3_warp", "torch"]).plot()

# %% [markdown]
# `torch` is PyTorch's own sum. Both axes show ratios: a step to the right is 4 times the data (1 Ki is 1024, 1 Mi is 1024 Ki).
# The dashed line is the *limit*: the time that the bytes alone would take at the measured ceiling, or the FLOPs alone, whichever
# is longer. On the left even the best version stays far from it, since starting a kernel takes microseconds, however little it
# does.
#
# Without a GPU, `lk.bench` shows what was recorded on an H200, and the line below the picture says when. With one, it measures
# here and now, your own functions too. The emulator's times are never shown; they say nothing about a GPU.

# %% [markdown]
# ## Still wasted
# A kernel that does so little with each number leaves most of the machine idle, however well it is written. The way out is to do
# more with each byte while it is there. If the result of `axpy` goes straight into `square`, what would you add to `axpy`, and
# how many bytes would that save?
#
# Lab 01 goes on with threads: how they are numbered, and what it costs when neighbours read far apart.
