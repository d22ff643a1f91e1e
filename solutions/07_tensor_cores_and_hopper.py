# %% [markdown]
# # 07 Tensor cores and Hopper
# A GPU has two places to multiply. The FMAs of lab 03 are one, *tensor cores* the other: they multiply whole small matrices. An H200's
# data sheet gives them 989 TFLOP/s of bfloat16, where its float32 FMAs have 67. The difficulty is to feed them.
#
# Part one works on every GPU since Ampere (2020): fragments and swizzles. Part two is Hopper (2022): a copy engine, barriers that
# count bytes, and threads with professions. All of it runs in the emulator, so a laptop will do.
#
# You need lab 01, and lab 03 up to its tiles.

# %% tags=["parameters"] again={"seed": 7, "rows": 70, "depth": 328}
seed = 0
rows = 100           # of the examples; odd sizes welcome
depth = 264          # a multiple of 8

# %%
%load_ext labkernels
import re

import pandas
import torch

import labkernels as lk
from labkernels.cuda.tensor_map import tensor_map

generator = torch.Generator().manual_seed(seed)
on_hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def blocks(count, size):
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


def placed(x):
    """`x` where Hopper's instructions can run: as it is if the GPU has them, else on the CPU."""
    return x if on_hopper else x.cpu()


def whole(x):
    """Small whole numbers made of `x`: sums of their products are exact, in whatever order."""
    return (4 * x).round()


# %% [markdown]
# # Part one: any GPU since Ampere
# ## One instruction, 32 lanes
# `mma.sync` is an instruction of a warp. It multiplies A, 16 x 16, with B, 16 x 8, and adds C, 16 x 8. A and B are bfloat16, the sums
# float32. No lane could hold a matrix of its own, so the 32 lanes hold each matrix *together*. What a lane has of it is called its
# *fragment*.

# %%
lk.draw.mma_fragments()

# %% [markdown]
# The numbers are lanes. Follow lane 9, outlined. Two bfloat16 share a register of 32 bits, so A's cells come in pairs: the colour
# says in which register. In B a register holds two neighbours of a *column*.
#
# **Predict.** How many elements of A does a lane hold, how many of B, and how many of C? And how many multiplications are in one
# `mma.sync`, compared with one FMA of a warp?

# %% solution="predict-fragments"
of_a = of_b = of_c = times_an_fma = None
### BEGIN SOLUTION
of_a = 16 * 16 // 32
of_b = 16 * 8 // 32
of_c = 16 * 8 // 32
times_an_fma = 16 * 8 * 16 // 32
### END SOLUTION

# %% tests="predict-fragments" points=1
lk.check_prediction("fragments", of_a, of_b, of_c, times_an_fma)

# %% [markdown]
# **Write** the map. `e` counts a lane's elements: 0 to 7 in A, where register `a[r]` holds elements `2 * r` and `2 * r + 1`; 0 to 3
# in B and C. C's place is given. Read A's and B's from the picture.

# %% solution="fragments"
%%cuda --name one_mma
#include "mma.cuh"     // mma_m16n8k16
#include "pack.cuh"    // pack_bf16x2: two floats become two bfloat16 in one register

struct Place { int row, col; };

// Where the element e of a lane stands in each matrix.
__device__ void places(int lane, int e, Place& in_a, Place& in_b, Place& in_c) {
    in_c = {lane / 4 + e / 2 * 8, lane % 4 * 2 + e % 2};
    // BEGIN SOLUTION
    in_a = {lane / 4 + e / 2 % 2 * 8, lane % 4 * 2 + e % 2 + e / 4 * 8};
    in_b = {lane % 4 * 2 + e % 2 + e / 2 * 8, lane / 4};
    // END SOLUTION
}

__global__ void one_mma(const float* a, const float* b, float* c) {
    float own_a[8], own_b[4], sum[4] = {};
    Place in_a, in_b, in_c;
    for (int e = 0; e < 8; ++e) {
        places(threadIdx.x, e, in_a, in_b, in_c);
        own_a[e] = a[in_a.row * 16 + in_a.col];
        if (e < 4) own_b[e] = b[in_b.row * 8 + in_b.col];
    }
    unsigned left[4], right[2];
    for (int r = 0; r < 4; ++r) left[r] = pack_bf16x2(own_a[2 * r], own_a[2 * r + 1]);
    for (int r = 0; r < 2; ++r) right[r] = pack_bf16x2(own_b[2 * r], own_b[2 * r + 1]);
    mma_m16n8k16<__nv_bfloat16>(sum, left, right, sum);
    for (int e = 0; e < 4; ++e) {
        places(threadIdx.x, e, in_a, in_b, in_c);
        c[in_c.row * 8 + in_c.col] = sum[e];
    }
}

# %%
def multiplied_by_a_warp(a, b):
    """whole(a) whole(b) for one 16 x 16 and one 16 x 8 matrix."""
    c = torch.empty(16, 8, device=a.device)
    one_mma(1, 32, (whole(a), whole(b), c))
    return c


# %% tests="fragments" points=3
def product(a, b):
    return whole(a) @ whole(b)


def registers_exchanged(a, b):
    return product(a.view(2, 8, 2, 8).permute(2, 1, 0, 3).reshape(16, 16), b)


def rows_for_columns(a, b):
    return product(a, b.view(2, 8, 8).mT.reshape(16, 8))


foreseen = {
    "what a[1] and a[2] give when exchanged: which of them lies below a[0]?": registers_exchanged,
    "what B gives if four neighbouring lanes share a row of it: they share a column": rows_for_columns,
}
lk.check_against(product, multiplied_by_a_warp, [{"a": (16, 16), "b": (16, 8)}], mistakes=foreseen);

# %% [markdown]
# Larger products are many of these, with the sums kept in registers from one to the next. All else is getting A and B there.
#
# ## Fragments from shared memory
# Your loop fetched a fragment element by element. `ldmatrix` fetches four 8 x 8 matrices for a warp at once. A row of such a matrix is
# 8 bfloat16, a *piece* of 16 bytes. Lane *l* says where piece *l* lies, 32 pieces in all, and each lane receives four registers, laid
# out as `mma.sync` wants them. Who asks for a piece and who gets it are different lanes.
#
# Now the banks of lab 01. Let a row of the tile have 64 bfloat16: 128 bytes, 8 pieces, all 32 banks. `ldmatrix` takes its matrices one
# after the other, and the 8 pieces of a matrix stand below each other:

# %%
lk.draw.swizzled_pieces()

# %% [markdown]
# The number is the piece. A place is 16 bytes, four banks, and all rows have the same banks in the same place. On the left the 8 pieces
# are in the same four banks. On the right row *r* has put its pieces elsewhere.
#
# **Predict.** 8 pieces without conflict take one pass, and each further pass counts as one bank conflict. How many conflicts has an
# `ldmatrix` of four matrices on the left? And on the right: in which place does row 5 keep piece 3?

# %% solution="predict-conflicts"
conflicts = place_of_3 = None
### BEGIN SOLUTION
conflicts = 4 * 7
place_of_3 = 3 ^ 5
### END SOLUTION

# %% tests="predict-conflicts" points=1
lk.check_prediction("conflicts of ldmatrix", conflicts, place_of_3)

# %% [markdown]
# **Write** `place`. Every row must use each of its 8 places once; a tile of *a* has 16 rows. One warp multiplies *a*, 16 x 64, with *b*
# transposed, 8 x 64. The tests allow no conflict, neither in `ldmatrix` nor where the pieces come in.

# %% solution="swizzle"
%%cuda --name slab
#include "ldmatrix.cuh"
#include "mma.cuh"

// In which place does row `row` keep the piece `piece`, 0 to 7?
__device__ int place(int row, int piece) {
    // BEGIN SOLUTION
    return piece ^ row % 8;
    // END SOLUTION
}

__global__ void slab(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, bool swizzle) {
    __shared__ uint4 a_tile[16][8], b_tile[8][8];      // a uint4 is 16 bytes: a piece
    int lane = threadIdx.x;
    auto kept = [&](int row, int piece) { return swizzle ? place(row, piece) : piece; };
    for (int i = lane; i < 16 * 8; i += 32) a_tile[i / 8][kept(i / 8, i % 8)] = reinterpret_cast<const uint4*>(a)[i];
    for (int i = lane; i < 8 * 8; i += 32) b_tile[i / 8][kept(i / 8, i % 8)] = reinterpret_cast<const uint4*>(b)[i];
    __syncwarp();
    float sum[4] = {};
    for (int step = 0; step < 4; ++step) {             // 16 of the 64 columns: two pieces
        unsigned left[4], right[2];
        int row = lane % 16, col = lane % 8;
        ldmatrix(left, &a_tile[row][kept(row, 2 * step + lane / 16)]);
        ldmatrix(right, &b_tile[col][kept(col, 2 * step + lane / 8 % 2)]);
        mma_m16n8k16<__nv_bfloat16>(sum, left, right, sum);
    }
    for (int e = 0; e < 4; ++e) c[(lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2] = sum[e];
}

# %%
def my_slab(a, b):
    """whole(a) whole(b)^T for a of 16 x 64 and b of 8 x 64."""
    c = torch.empty(16, 8, device=a.device)
    slab(1, 32, (whole(a).bfloat16(), whole(b).bfloat16(), c, True))
    return c


# %% tests="swizzle" points=3
def reference_slab(a, b):
    return whole(a) @ whole(b).mT


slab_case = {"a": (16, 64), "b": (8, 64)}
lk.check_against(reference_slab, my_slab, [slab_case])
lk.check_counters(reference_slab, my_slab, slab_case, bank_conflicts=0);

# %% [markdown]
# The same kernel without and with it, under the profiler:

# %%
a, b = (torch.randn(count, 64, generator=generator).bfloat16() for count in (16, 8))
table = {}
for name, swizzle in {"plain": False, "swizzled": True}.items():
    counted = lk.profile(slab, 1, 32, (a, b, torch.empty(16, 8), swizzle))
    table[name] = {
        "ldmatrix": counted.shared_load_requests,
        "their conflicts": counted.shared_load_conflicts,
        "stores": counted.shared_store_requests,
        "conflicts of stores": counted.shared_store_conflicts,
    }
pandas.DataFrame(table).T

# %% [markdown]
# *a* takes 28 in each of its four steps, as you said, and *b*, two matrices a step, 14.
#
# ## Copies that nobody waits for
# One thing is still slow: a thread that copies waits for its number to arrive. `cp.async` copies 16 bytes from global to shared memory
# past the registers, and goes on in the background. With two tiles in shared memory, the next one travels while this one is
# multiplied. This is *double buffering*. `matmul.v6_tensor_cores` is these three: `mma.sync`, `ldmatrix` with a swizzle, and `cp.async`
# several tiles ahead.
#
# # Part two: Hopper
# ## The copy engine
# With `cp.async` all threads still compute addresses. Hopper's *TMA* (tensor memory accelerator) needs one thread for a whole *box*, such as
# 64 rows by 64 columns. A *tensor map*, made before the launch, tells it the matrix: address, shape, strides, box, swizzle. What lies outside the
# matrix comes as 0.
#
# Nobody waits for the copy as such. One waits for an *mbarrier*, 8 bytes in shared memory that count two things: arrivals of threads, and
# bytes still to come. Its *phase* ends when both are complete. Then the next phase begins.
#
# TMA can swizzle, too. Here every number of `x` is the piece it stands in. One thread fetches the box; then we look at how it lies
# in shared memory.

# %%
%%cuda --name one_box
#include <cuda_bf16.h>
#include "tma.cuh"    // TensorMap, tma_load, and mbarriers

// A tensor map is always passed like this: __grid_constant__ keeps it where the copy engine can read it.
__global__ void one_box(const __grid_constant__ TensorMap x, __nv_bfloat16* as_it_lies) {
    __shared__ __align__(1024) __nv_bfloat16 box[8 * 64];
    __shared__ Mbarrier full;
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 1);                           // one thread will arrive
        fence_mbarrier_init();                             // for the copy engine to see
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect_tx(&full, sizeof(box));     // it arrives, and announces the bytes
        tma_load(box, x, &full, 0, 0);                     // from column 0, row 0
    }
    mbarrier_wait(&full, 0);                               // everybody: until phase 0 is over
    for (int i = threadIdx.x; i < 8 * 64; i += blockDim.x) as_it_lies[i] = box[i];
}

# %%
x = (torch.arange(64) // 8).repeat(8, 1).bfloat16()
lies = torch.empty_like(x)
one_box(1, 32, (tensor_map(x, box=(8, 64), swizzle=128), lies))
lies[:, ::8].int()      # one number of each piece

# %% [markdown]
# The picture's swizzle, in hardware: row 4 keeps piece 7 in place 4 ^ 7 = 3.
#
# ## Phases and parity
# With two tiles, or *stages*, in shared memory there are two kinds of news. `full[s]` says that stage *s* has been filled; `empty[s]` says
# that all have read it. The producer waits for one and causes the other; for the consumers it is the other way around.

# %%
lk.draw.mbarrier_phases()

# %% [markdown]
# Tile *k* goes to stage *k* % 2, in round *k* / 2. An mbarrier tells its phases apart by *parity*: phase 0 has parity 0, phase 1 parity 1, phase 2
# parity 0 again. `mbarrier_wait(&b, p)` returns when the phase with parity *p* is over. So the consumer waits for `full[s]` with the parity of
# its round.
#
# The producer, in round *r*, waits until the stage was emptied in round *r* - 1. In round 0 nobody has to empty anything. And so it is: on a
# fresh mbarrier, waiting for parity 1 returns at once.
#
# **Predict** for tile 5: its stage, the parity with which the consumer waits for `full`, and that with which the producer waits for `empty`.

# %% solution="predict-parity"
stage_of_5 = full_parity = empty_parity = None
### BEGIN SOLUTION
stage_of_5 = 5 % 2
full_parity = 5 // 2 % 2
empty_parity = 1 - full_parity
### END SOLUTION

# %% tests="predict-parity" points=1
lk.check_prediction("parity of tile 5", stage_of_5, full_parity, empty_parity)

# %% [markdown]
# ## Write the ring
# One warp adds up columns, 32 of them, each lane its own. A thread of another warp fetches the boxes: 16 rows of 32 floats.
#
# **Write** both loops over the tiles `k = 0` to `tiles - 1`. `producer` and `consumer` say what this thread is.
#
# - The producer: wait until the stage is empty; arrive at `full` and announce `BOX_BYTES`; ask for the box with
#   `tma_load(box[s], x, &full[s], 0, k * ROWS)`.
# - Each consumer: wait until the stage is full; add `box[s][i][lane]` for all 16 rows *i*; `mbarrier_arrive(&empty[s])`.

# %% solution="ring"
%%cuda --name column_sums
#include "tma.cuh"
constexpr int STAGES = 2, ROWS = 16, COLS = 32, BOX_BYTES = ROWS * COLS * 4;

__global__ void column_sums(const __grid_constant__ TensorMap x, float* sums, int tiles) {
    __shared__ __align__(128) float box[STAGES][ROWS][COLS];
    __shared__ Mbarrier full[STAGES], empty[STAGES];
    const int lane = threadIdx.x % 32;
    const bool producer = threadIdx.x == 32, consumer = threadIdx.x < 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], 1);         // the producer arrives
            mbarrier_init(&empty[s], 32);       // every consumer arrives
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    float sum = 0.0f;
    // BEGIN SOLUTION
    if (producer) {
        for (int k = 0; k < tiles; ++k) {
            const int s = k % STAGES, round = k / STAGES;
            mbarrier_wait(&empty[s], (round + 1) % 2);
            mbarrier_arrive_expect_tx(&full[s], BOX_BYTES);
            tma_load(box[s], x, &full[s], 0, k * ROWS);
        }
    }
    if (consumer) {
        for (int k = 0; k < tiles; ++k) {
            const int s = k % STAGES, round = k / STAGES;
            mbarrier_wait(&full[s], round % 2);
            for (int i = 0; i < ROWS; ++i) sum += box[s][i][lane];
            mbarrier_arrive(&empty[s]);
        }
    }
    // END SOLUTION
    if (consumer) sums[lane] = sum;
}

# %%
def my_column_sums(x):
    """The sums of the 32 columns of whole(x)."""
    numbers = placed(whole(x))
    sums = torch.empty(32, device=numbers.device)
    column_sums(1, 64, (tensor_map(numbers, box=(16, 32)), sums, blocks(len(x), 16)))
    return sums.to(x.device)


# %% tests="ring" points=4
lk.check_against(lambda x: whole(x).sum(0), my_column_sums, [{"x": (count, 32)} for count in (16, 48, 100, 1000)]);

# %% [markdown]
# The small cases ran under the sanitizer, which checks more than the sums. Take the producer's wait out of your source, and every box comes
# as soon as it can:

# %%
text = re.sub(r"mbarrier_wait\(&empty[^;]*;", "", column_sums.source.text)
hasty = lk.Kernel(text, "column_sums", filename="your ring")
numbers = whole(torch.randn(rows, 32, generator=generator))
lk.sanitize(hasty, 1, 64, (tensor_map(numbers, box=(16, 32)), torch.empty(32), blocks(rows, 16)))

# %% [markdown]
# Two boxes were on their way to one stage, and no lane had read the first. Then phases went by that nobody had waited for, and at the end the
# lanes waited for one that never came. On a GPU the sums might be right for months.
#
# ## wgmma
# Hopper's own instruction for its tensor cores is for a *warpgroup*: four warps, 128 threads. `wgmma` multiplies 64 x 16 with 16 x *n*, *n* up to
# 256. It takes A and B straight from shared memory. Only the sums are in registers.
#
# The threads say where A and B lie in a *descriptor*, one number of 64 bits: the address, the swizzle, and the *stride*, how many bytes it is from
# 8 rows to the next 8.

# %%
lk.draw.wgmma_tile()

# %% [markdown]
# A row of this tile is 64 bfloat16 long, and one wgmma takes 16 of them. A descriptor counts in units of 16 bytes.
#
# **Predict.** The stride in bytes; how many wgmmas use up the tile; and how much is added to the descriptor to go from one to the next.

# %% solution="predict-descriptor"
stride = wgmmas = advance = None
### BEGIN SOLUTION
stride = 8 * 64 * 2
wgmmas = 64 // 16
advance = 16 * 2 // 16
### END SOLUTION

# %% tests="predict-descriptor" points=1
lk.check_prediction("descriptor", stride, wgmmas, advance)

# %% [markdown]
# wgmma does not wait either. `wgmma_fence()` comes first: the sums are ready. Then the wgmmas. `wgmma_commit()` makes them a group, and
# `wgmma_wait<0>(d)` waits until no group is left. Before that nobody may read the sums, or give the stage back.
#
# ## A matmul in three professions
# Now all of it: one thread fetches, the copy engine copies, a warpgroup multiplies. This is *warp specialisation*.

# %%
lk.draw.specialised_block()

# %% [markdown]
# A block computes 64 x 32 elements of c = a bᵀ, from tiles with 64 columns of *a* and *b*. The producer is given.
#
# **Write** what the warpgroup does with tile `i`, in stage `s`:
#
# 1. Wait until the stage is full.
# 2. Make two descriptors: `matrix_descriptor(a_tile[s], 0, stride, 128)`, and the same for `b_tile[s]`. 128 is the swizzle; what
#    0 stands for is not looked at in such a tile.
# 3. Fence; the wgmmas, `wgmma<__nv_bfloat16>(d, left, right, true)`, each further along both tiles; commit.
# 4. Wait for them, then arrive at `empty`.

# %% solution="consumer"
%%cuda --name hopper
#include <cuda_bf16.h>
#include "tma.cuh"
#include "wgmma.cuh"
constexpr int STAGES = 2, ROWS = 64, COLS = 32, DEPTH = 64, CONSUMERS = 128;

__global__ void __launch_bounds__(CONSUMERS + 32, 1)
hopper(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* c, int m, int n, int k,
       int mistake) {
    __shared__ __align__(1024) __nv_bfloat16 a_tile[STAGES][ROWS * DEPTH], b_tile[STAGES][COLS * DEPTH];
    __shared__ Mbarrier full[STAGES], empty[STAGES];
    const int row = blockIdx.y * ROWS, col = blockIdx.x * COLS, tiles = (k + DEPTH - 1) / DEPTH, t = threadIdx.x;
    if (t == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], CONSUMERS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();

    if (t == CONSUMERS) {                                   // the producer
        for (int i = 0; i < tiles; ++i) {
            const int s = i % STAGES, round = i / STAGES;
            if (mistake != 1) mbarrier_wait(&empty[s], (round + 1) % 2);
            mbarrier_arrive_expect_tx(&full[s], (ROWS + COLS) * DEPTH * 2 + (mistake == 2 ? 16 : 0));
            tma_load(a_tile[s], a, &full[s], i * DEPTH, row);
            tma_load(b_tile[s], b, &full[s], i * DEPTH, col);
        }
    } else if (t < CONSUMERS) {                             // the warpgroup
        float d[COLS / 2] = {};
        for (int i = 0; i < tiles; ++i) {
            const int s = i % STAGES, round = i / STAGES;
            // BEGIN SOLUTION
            mbarrier_wait(&full[s], round % 2);
            const MatrixDescriptor left = matrix_descriptor(a_tile[s], 0, 1024, 128);
            const MatrixDescriptor right = matrix_descriptor(b_tile[s], 0, 1024, 128);
            wgmma_fence();
            for (int part = 0; part < 4; ++part) wgmma<__nv_bfloat16>(d, left + 2 * part, right + 2 * part, true);
            wgmma_commit();
            wgmma_wait<0>(d);
            mbarrier_arrive(&empty[s]);
            // END SOLUTION
        }
        for (int e = 0; e < COLS / 2; ++e) {                // as in C of mma.sync: 16 rows a warp, 8 columns for 4 sums
            const int r = row + t / 32 * 16 + t % 32 / 4 + e / 2 % 2 * 8;
            const int q = col + e / 4 * 8 + t % 4 * 2 + e % 2;
            if (r < m && q < n) c[r * n + q] = d[e];
        }
    }
}

# %%
def launch(a, b, mistake=0, swizzle=128):
    """The grid, block and arguments for c = a b^T, bfloat16; c comes last."""
    (m, k), n = a.shape, len(b)
    c = torch.empty(m, n, device=a.device)
    maps = tensor_map(a, box=(64, 64), swizzle=swizzle), tensor_map(b, box=(32, 64), swizzle=swizzle)
    return (blocks(n, 32), blocks(m, 64)), 160, (*maps, c, m, n, k, mistake), c


def my_hopper(a, b):
    """whole(a) whole(b)^T."""
    grid, block, args, c = launch(placed(whole(a).bfloat16()), placed(whole(b).bfloat16()))
    hopper(grid, block, args)
    return c.to(a.device)


# %% tests="consumer" points=5
sizes = [(12, 12, 320), (100, 40, 264)]
cases = [{"a": (m, k), "b": (n, k)} for m, n, k in sizes]
lk.check_against(lambda a, b: whole(a) @ whole(b).mT, my_hopper, cases);

# %% [markdown]
# All that the ladder's fastest matmul does, it does around this loop.
#
# ## Two mistakes, and a third
# Mistakes are built into the launch, off so far:
#
# 1. `mistake=1`: the producer does not wait until a stage is empty.
# 2. `mistake=2`: it announces 16 bytes more than will come.
# 3. `swizzle=0`: TMA does not swizzle, but your descriptors say that it does.
#
# **Predict** what the sanitizer will say of each: `"race"`, `"deadlock"` (threads wait for what never comes), `"out_of_bounds"` or
# `"misaligned"`, which is also its word for data that do not lie as an instruction takes them to lie.

# %% solution="predict-mistakes"
first = second = third = None
### BEGIN SOLUTION
first = "race"
second = "deadlock"
third = "misaligned"
### END SOLUTION

# %% tests="predict-mistakes" points=2
lk.check_prediction("three mistakes", first, second, third)

# %%
a, b = (torch.randn(count, depth, generator=generator).bfloat16() for count in (rows, 32))
for choice in ({"mistake": 1}, {"mistake": 2}, {"swizzle": 0}):
    print(choice)
    print(lk.sanitize(hopper, *launch(a, b, **choice)[:3]).findings[0].text, end="\n\n")

# %% [markdown]
# Each names an array or a barrier, the threads, and the line. The second is a circle: the warpgroup waits for bytes, the producer for the
# warpgroup.
#
# Now one of your own. Leave `wgmma_fence()` or `wgmma_commit()` out, or arrive at `empty` before `wgmma_wait`, and run the tests again.
#
# ## Clusters
# Two blocks, one above the other in c, need the same tile of *b*. In a *cluster* up to 8 blocks run together and reach into each
# other's shared memory (`cluster.cuh`). With `tma_load_multicast` one box goes to all of them: each block fetches half of *b*'s tile, and both get
# the whole. A stage may then be filled when the consumers of *both* blocks have read it, so `empty` counts them all.
#
# **Predict.** A block owns 128 x 256 elements of c, and a tile is 64 columns of bfloat16 deep. How many bytes does a block fetch for each
# tile on its own? And in such a cluster of two?

# %% solution="predict-cluster"
bytes_alone = bytes_in_cluster = None
### BEGIN SOLUTION
bytes_alone = (128 + 256) * 64 * 2
bytes_in_cluster = (128 + 256 // 2) * 64 * 2
### END SOLUTION

# %% tests="predict-cluster" points=1
lk.check_prediction("bytes in a cluster", bytes_alone, bytes_in_cluster)

# %% [markdown]
# ## The ladder's
# Yours differs from `matmul.v7_hopper` in size, not in kind. There two warpgroups multiply, four stages are ahead, a block stays for
# many tiles, and stores go by TMA, too. What was measured on the way stands in its source, in TFLOP/s on an H200:

# %%
source = lk.ops["matmul"].variants["v7_hopper"].source.read_text()
for line in re.findall(r"^// *(.*\d -> \d.*)", source, re.MULTILINE):
    print(re.sub(" +", " ", line))

# %% [markdown]
# The first lets the copy engine see what threads wrote; a *release* lets other threads see it. Both waited for more memory than they had to.
# The cluster saved bytes that were not the limit.

# %%
ladder = ["v5_pipelined", "v6_tensor_cores", "v7_hopper", "cublas"]
lk.bench("matmul", ladder, dtype="bfloat16", m=[512, 1024, 2048, 4096, 8192]).plot()

# %% [markdown]
# ## Still wasted
# - **Waiting.** Your warpgroup waits for each tile's wgmmas before it asks for the next. One group could always be under way: which stage
#   may then be given back, and when?
# - **Small tiles.** With 64 + 32 numbers that it fetches, your block can do 64 x 32 multiplications: 21 for each number. With tiles of
#   128 x 256 it would be 85.
# - **The end.** While a block writes its result, its tensor cores have nothing to do.
# - **Threads.** The producer is one thread, and its 31 neighbours hold registers. `setmaxnreg` hands such registers to those who multiply.
#
# What would you add next?
