# %% [markdown]
# # 10 Quantised matmul
# When a model writes a token it reads all of its weights once. A weight of 16 bits that could do with 4 would be read in a quarter of
# the time. What is lost is precision, and what is added is work: each number must be unpacked before it is multiplied.
#
# You round weights to 16 levels, take them out of packed words, and multiply without ever writing them down. You need labs 01 to 03.

# %% tags=["parameters"] again={"seed": 7, "outputs": 40}
seed = 0
outputs = 24         # rows of the example's weight; odd sizes welcome

# %%
%load_ext labkernels
import torch

import labkernels as lk

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(seed)


def random(*shape):
    return torch.randn(shape, generator=generator).to(device)


# %% [markdown]
# ## What a bit costs
# Four bits are a number from 0 to 15. To mean weights, they come with a *scale* and a *zero*: $w \approx \text{scale}\,(q - \text{zero})$. One pair for
# a whole matrix would be too coarse: one large weight would take the levels from all others. So each *group* of neighbours in a row, 128 of
# them say, has a pair of its own, in 16 bits each.
#
# **Predict.** A weight of 11008 x 4096: how many bytes in bfloat16, and how many in 4 bits with a group size of 128? And how many bits is that for
# each weight?

# %% solution="predict-bits"
sixteen_bit_bytes = four_bit_bytes = bits_a_weight = None
### BEGIN SOLUTION
sixteen_bit_bytes = 11008 * 4096 * 2
four_bit_bytes = 11008 * 4096 // 2 + 11008 * 4096 // 128 * 4
bits_a_weight = 8 * four_bit_bytes / (11008 * 4096)
### END SOLUTION

# %% tests="predict-bits" points=1
lk.check_prediction("quantised bytes", sixteen_bit_bytes, four_bit_bytes, bits_a_weight)

# %% [markdown]
# ## Rounding
# The levels can lie evenly between a group's smallest and largest weight. Or they can lie as the weights do: trained weights are
# about normally distributed, and *NF4* (normal float, 4 bits) has more levels where a normal distribution has more numbers.

# %%
lk.draw.weight_levels()

# %% [markdown]
# **Write** the even kind, for a group a row. The smallest weight becomes 0 and the largest 15:
#
# $$ \text{scale} = \frac{\max - \min}{15}, \qquad \text{zero} = \text{round}\Big(\frac{-\min}{\text{scale}}\Big), \qquad
# q = \text{round}\Big(\frac{w}{\text{scale}}\Big) + \text{zero}, \text{ clamped to } 0 \ldots 15 $$
#
# Return what the weights are *after* it: $\text{scale}\,(q - \text{zero})$. `min` is the smallest weight or 0, `max` the largest or 0. As zero is a whole
# number, 0 is always a level. Two roundings can add up to 16, which has no place in 4 bits: so clamp. And a group of zeros has scale 0: take 1.

# %% solution="rounding"
def rounded(w):
    """w (groups, size) rounded to 16 levels a group."""
    low, high = w.amin(-1, keepdim=True).clamp(max=0), w.amax(-1, keepdim=True).clamp(min=0)
    ### BEGIN SOLUTION
    scale = (high - low) / 15
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / scale)
    q = (torch.round(w / scale) + zero).clamp(0, 15)
    return scale * (q - zero)
    ### END SOLUTION


# %%
def rounded_reference(w):
    """The same, one group and one weight at a time."""
    result = torch.empty_like(w)
    for group, row in enumerate(w.tolist()):
        low, high = min(*row, 0.0), max(*row, 0.0)
        scale = (high - low) / 15 or 1.0
        zero = round(-low / scale)
        for i, value in enumerate(row):
            result[group, i] = scale * (min(max(round(value / scale) + zero, 0), 15) - zero)
    return result


def cut_off(w):
    """What `floor` in place of `round` gives."""
    low, high = w.amin(-1, keepdim=True).clamp(max=0), w.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / 15
    zero = torch.round(-low / scale)
    return scale * ((torch.floor(w / scale) + zero).clamp(0, 15) - zero)


mistakes = {"rounded down, not to the nearest level": cut_off}

# %% tests="rounding" points=3
lk.check_against(rounded_reference, rounded, [{"w": (1, 2)}, {"w": (5, 32)}, {"w": (3, 128)}], mistakes=mistakes);
assert torch.equal(rounded(torch.zeros(2, 32)), torch.zeros(2, 32)), "a group of zeros must stay zeros: what is its scale?"
ends = rounded(torch.tensor([[-7.5, 7.5]])).tolist()[0]
assert ends == [-8.0, 7.0], f"-7.5 and 7.5, scale 1, zero 8: got {ends}, want [-8.0, 7.0]. Which q has 7.5, and does it fit in 4 bits?"

# %% [markdown]
# ## Eight to a word
# A GPU has no loads of half a byte. Eight numbers share a word of 32 bits. In what order? A 16-bit product wants two neighbours in the two
# halves of a register. So neighbours are put 16 bits apart, and one shift and one mask take out both:

# %%
lk.draw.packed_word()

# %% [markdown]
# Shift by 0, 4, 8 and 12 bits, and all eight are out, in order, with three shifts and four masks.
#
# **Write** the product of a quantised weight with one *x*, in float32. A warp has a row of the weight; lane *l* takes the words *l*, *l* + 32 and so on.
# For the eight numbers of a word:
#
# 1. `(word >> 4 * i) & 0x000f000f` has number `2 * i` in its lower half, number `2 * i + 1` in its upper one.
# 2. Add `scale * (q - zero) * x` to `sum`. All eight are of one group, whose pair has been read for you.

# %% solution="gemv"
%%cuda --name gemv
// words (n, k / 8), scales and zeros (n, k / group), x (k,), y (n,). One warp a row.
__global__ void gemv(const unsigned* words, const float* scales, const float* zeros, const float* x, float* y, int k, int group) {
    const int row = blockIdx.x, lane = threadIdx.x;
    float sum = 0.0f;
    for (int at = lane; at < k / 8; at += 32) {
        const unsigned word = words[row * (k / 8) + at];
        const int first = 8 * at;                         // the k of the word's first number
        const float scale = scales[row * (k / group) + first / group], zero = zeros[row * (k / group) + first / group];
        // BEGIN SOLUTION
        for (int i = 0; i < 4; ++i) {
            const unsigned pair = (word >> 4 * i) & 0x000f000f;
            sum += scale * (float(pair & 0xffff) - zero) * x[first + 2 * i];
            sum += scale * (float(pair >> 16) - zero) * x[first + 2 * i + 1];
        }
        // END SOLUTION
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);
    if (lane == 0) y[row] = sum;
}

# %%
from labkernels.quant.formats import pack4


def quantised(w, group):
    """q (n, k), scales and zeros (n, k / group)."""
    grouped = w.unflatten(1, (-1, group))
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scales = (high - low) / 15
    zeros = torch.round(-low / scales)
    q = (torch.round(grouped / scales[..., None]) + zeros[..., None]).clamp(0, 15)
    return q.flatten(1).to(torch.uint8), scales, zeros


def weights_of(w, group):
    q, scales, zeros = quantised(w, group)
    return (scales[..., None] * (q.unflatten(1, (-1, group)).to(w.dtype) - zeros[..., None])).flatten(1)


def my_gemv(w, x, group):
    q, scales, zeros = quantised(w, group)
    y = torch.empty(len(w), device=w.device)
    gemv(len(w), 32, (pack4(q).view(torch.uint32), scales, zeros, x, y, w.shape[1], group))
    return y


def gemv_reference(w, x, group):
    return weights_of(w, group) @ x


def halves_exchanged(w, x, group):
    return gemv_reference(w, x.unflatten(0, (-1, 2)).flip(1).flatten(), group)


def without_zero(w, x, group):
    q, scales, _ = quantised(w, group)
    return (scales[..., None] * q.unflatten(1, (-1, group)).to(w.dtype)).flatten(1) @ x


mistakes = {
    "that with each two neighbours exchanged": halves_exchanged,
    "without the zeros": without_zero,
    "that of the weights before they were rounded": lambda w, x, group: w @ x,
}

# %% tests="gemv" points=4
cases = [{"w": (n, k), "x": (k,), "group": group} for n, k, group in [(1, 32, 32), (5, 64, 32), (3, 128, 64)]]
lk.check_against(gemv_reference, my_gemv, cases, mistakes=mistakes);

# %% [markdown]
# Count what you do for a number of half a byte. A shift and a mask, shared by two; one more to take it out of its half; convert, load its *x*,
# subtract, multiply, and a multiply-add. That makes seven instructions. At 4.8 TB/s and 1.75 GHz memory brings each of 132 multiprocessors 21
# bytes a clock: 39 numbers of 4.25 bits. In that clock its 128 lanes start 128 instructions, three for a number. So the limit of this
# kernel is not memory. The package's versions spend less on each number:
#
# - scale and zero wait until the group's end: $\sum s\,(q - z)\,x = s\,(\sum q\,x - z \sum x)$;
# - or-ing `0x4300` into a half word makes it the bfloat16 $128 + q$: no conversion, two numbers at once;
# - tensor cores multiply what was unpacked, even for one row of *x*.
#
# ## Any sixteen numbers
# NF4's levels follow no formula. Its number is an index: $w = \text{scale} \cdot \text{codebook}[q]$. The *codebook* of 16 floats goes into shared memory,
# where 32 lanes can look at once. Lab 01 has the rule: lanes that want different words of one bank wait for each other.
#
# A larger table can save work. Two numbers are a byte: with 256 entries, each a pair of 16-bit floats in one word of 4 bytes, one look finds
# the levels of both.
#
# **Predict.** 32 lanes look up any numbers from 0 to 15 in the table of 16 floats. How many bank conflicts can there be at most? And in the table
# of 256 words: how many lanes can meet in one bank, at worst, all wanting different words?

# %% solution="predict-table"
conflicts_of_sixteen = words_in_a_bank = None
### BEGIN SOLUTION
conflicts_of_sixteen = 0          # every word has a bank of its own
words_in_a_bank = 256 // 32       # of 256 words each bank has 8
### END SOLUTION

# %% tests="predict-table" points=1
lk.check_prediction("table conflicts", conflicts_of_sixteen, words_in_a_bank)

# %% [markdown]
# At random about three meet in the table of 256. The package's `v3_lut` spends 32 KB to avoid it: each bank has a table of its own, for its own lane.
#
# **Write** the product by the table of 16. Copy it into shared memory first. There is no zero now, only the group's scale.

# %% solution="lookup"
%%cuda --name lookup
// As gemv, with w = scale * codebook[q]; codebook (16,).
__global__ void lookup(const unsigned* words, const float* scales, const float* codebook, const float* x, float* y, int k, int group) {
    __shared__ float table[16];
    const int row = blockIdx.x, lane = threadIdx.x;
    // BEGIN SOLUTION
    if (lane < 16) table[lane] = codebook[lane];
    __syncthreads();
    // END SOLUTION
    float sum = 0.0f;
    for (int at = lane; at < k / 8; at += 32) {
        const unsigned word = words[row * (k / 8) + at];
        const int first = 8 * at;
        const float scale = scales[row * (k / group) + first / group];
        // BEGIN SOLUTION
        for (int i = 0; i < 4; ++i) {
            const unsigned pair = (word >> 4 * i) & 0x000f000f;
            sum += scale * (table[pair & 15] * x[first + 2 * i] + table[pair >> 16] * x[first + 2 * i + 1]);
        }
        // END SOLUTION
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);
    if (lane == 0) y[row] = sum;
}

# %%
from labkernels.quant.formats import NF4


def nearest_levels(w, group):
    """q (n, k) and scales (n, k / group): each weight's nearest level of NF4, scaled to the group's largest weight."""
    grouped = w.unflatten(1, (-1, group))
    scales = grouped.abs().amax(-1)
    levels = torch.tensor(NF4, dtype=w.dtype, device=w.device)
    q = (grouped / scales[..., None])[..., None].sub(levels).abs().argmin(-1)
    return q.flatten(1).to(torch.uint8), scales


def my_lookup(w, x, group):
    q, scales = nearest_levels(w, group)
    codebook, y = torch.tensor(NF4, device=w.device), torch.empty(len(w), device=w.device)
    lookup(len(w), 32, (pack4(q).view(torch.uint32), scales, codebook, x, y, w.shape[1], group))
    return y


def lookup_reference(w, x, group):
    q, scales = nearest_levels(w, group)
    levels = torch.tensor(NF4, dtype=w.dtype, device=w.device)
    return (scales[..., None] * levels[q.long()].unflatten(1, (-1, group))).flatten(1) @ x


# %% tests="lookup" points=3
exchanged = {"that with each two neighbours exchanged": lambda w, x, group: lookup_reference(w, x.unflatten(0, (-1, 2)).flip(1).flatten(), group)}
lk.check_against(lookup_reference, my_lookup, cases, mistakes=exchanged);

# %% [markdown]
# ## What is lost
# Errors of a layer's *output* are what counts. Here is a layer whose inputs are correlated, as those in a trained model are: some directions
# matter much more than others. *nearest* rounds each weight by itself; *mse* searches for scales that lose less; *gptq* rounds one column
# after the other, and lets the columns to come make up for what was lost so far. Errors are relative; the bits include scales, zeros and
# NF4's codebook, which is not little beside a weight as small as this.

# %%
from labkernels.quant.accuracy import accuracy_table

mixing = torch.randn(256, 32, generator=generator)


def inputs(count):
    """Rows of 256 numbers that lie near a space of 32 dimensions."""
    return torch.randn(count, 32, generator=generator) @ mixing.t() / 6 + 0.1 * torch.randn(count, 256, generator=generator)


weight = torch.randn(outputs, 256, generator=generator) / 16
schemes = [("int8", None), ("int4", 128), ("int4", 32), ("nf4", 64)]
table = accuracy_table(weight, inputs(200), calibration=inputs(400), schemes=schemes)
table.round({"bits_per_weight": 2, "weight_error": 4, "output_error": 4})

# %%
lk.draw.error_by_bits(list(table[["scheme", "quantizer", "bits_per_weight", "output_error"]].itertuples(index=False)))

# %% [markdown]
# GPTQ ends further from the weights than rounding does, and closer to what the weights *do*.
#
# ## How many rows?
# For one token the weight is read, unpacked and used once. For 256 tokens it is still read once, but the products take longer than reading, and
# those are as many as in 16 bits. Somewhere between, another kernel is the fastest. With a GPU all are measured now; without one you see what
# an H200 has recorded, by *m*, the rows of *x*. In brackets: the share of the limit, the time to read 4 bits a weight or to multiply.

# %%
ours = ["v2_gemv", "v3_lut", "v4_tensor_cores", "v5_hopper", "v6_stream", "v7_resident"]
rows = lk.bench("quant_matmul", [*ours, "cublas", "tinygemm"], dtype="bfloat16", m=[1, 4, 16, 64, 256], n=11008, k=4096, scheme="int4")
rows

# %% [markdown]
# `cublas` multiplies the same weight in bfloat16, `tinygemm` is PyTorch's own kernel for 4 bits.
#
# On the H200 the fastest of ours takes one row in little more than a third of `cublas`' time, not in a quarter: a kernel's start and end do
# not shrink with its bytes. Four rows take a tenth more than one. At 64 rows it is still ahead (of a weight of 4096 x 4096 it is not: 10.2
# microseconds, `cublas` 9.3). At 256 it is no longer: now the products are the limit, as many as in 16 bits, and unpacking comes on top. With that
# many rows a weight of this size gains memory, not time.
#
# Which kernel runs for a given number of rows is chosen by a table of such measurements, and can be asked:

# %%
from labkernels.quant import quantize

small = quantize(torch.randn(64, 128, generator=generator), "int4", 32).to(device)
print(lk.explain("quant_matmul", torch.randn(2, 128, generator=generator).to(device, torch.bfloat16), small))

# %% [markdown]
# ## As a layer
# `QuantLinear` takes the place of a `torch.nn.Linear` in a trained model. The weight is quantised once, the bias stays as it is:

# %%
torch.manual_seed(seed)
linear = torch.nn.Linear(128, 64, bias=True).to(device, torch.bfloat16)
layer = lk.nn.QuantLinear.from_linear(linear, "int4", group_size=32)
x = random(5, 128).to(torch.bfloat16)
error = (layer(x).float() - linear(x).float()).norm() / linear(x).float().norm()
print("relative error of the output below 15%:", bool(error < 0.15))
print("bytes of the weight:", linear.weight.numel() * 2, "->", layer.weight.bytes)

# %% [markdown]
# ## Still wasted
# - **Starts and ends.** A weight of 4096 x 4096 could be read in 2 microseconds, and the fastest kernel recorded takes 5. On Hopper the package's
#   kernels already ask for their weight before the kernel before them is done; what is left is waiting for the first bytes and for the last.
# - **Activations in 16 bits.** With both sides in int8, tensor cores multiply twice as fast: `w8a8_matmul` in this package.
# - **One scheme for all.** Some layers bear 4 bits, some do not.
#
# What would you add next? And a question: GPTQ needs inputs to calibrate with. What happens to a model that was calibrated with English
# text, and is asked in another language?
