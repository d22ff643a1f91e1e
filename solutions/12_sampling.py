# %% [markdown]
# # 12 Sampling
# A language model's last product gives a number for each *token* of its vocabulary, a word or a part of one: the *logits*. From them one
# token is drawn. It looks like an afterthought. But the usual recipe sorts 128 256 numbers to throw most of them away, and takes an H200
# 0.28 ms, in which it could read the weights of almost three of a Llama 3 8B's 32 layers.
#
# This lab draws without sorting. You need lab 02.

# %% tags=["parameters"] again={"seed": 7, "vocab": 77}
seed = 0
vocab = 100          # of the examples; odd sizes welcome

# %%
%load_ext labkernels
import torch

import labkernels as lk

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(seed)


def random(*shape):
    return torch.randn(shape, generator=generator).to(device)


# %% [markdown]
# ## Temperature, and the nucleus
# The probability of a token is the softmax of the logits. Before it they are divided by the *temperature*: below 1 the likely tokens become
# likelier still, above 1 all become more alike.

# %%
lk.draw.temperatures()

# %% [markdown]
# Thousands of unlikely tokens together are not unlikely, and one of them now and then derails a text. *Top-p* keeps the *nucleus*: the
# fewest tokens, the most probable first, whose probabilities add up to at least *p*. The rest cannot be drawn.

# %%
lk.draw.nucleus()

# %% [markdown]
# **Predict.** Five tokens have the probabilities 0.4, 0.3, 0.2, 0.06 and 0.04, and top-p is 0.8. How many stay? And with what probability is
# the first one drawn then?

# %% solution="predict-nucleus"
stay = first_drawn = None
### BEGIN SOLUTION
stay = 3                       # 0.4 + 0.3 is too little, with 0.2 it is 0.9
first_drawn = 0.4 / 0.9
### END SOLUTION

# %% tests="predict-nucleus" points=1
lk.check_prediction("nucleus", stay, first_drawn)

# %% [markdown]
# **Write** the definition in PyTorch, by a sort: the probabilities with which each token is drawn, zero for those that are not kept. A token
# is kept if those *before* it, in order, have less than `top_p` together. What is kept is divided by its sum.

# %% solution="distribution"
def distribution(logits, temperature, top_p):
    """logits (rows, vocab): probabilities of the same shape, each row's sum 1."""
    p = torch.softmax(logits / temperature, -1)
    ### BEGIN SOLUTION
    ordered, order = p.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.where(before < top_p, ordered, 0.0)
    kept = torch.zeros_like(p).scatter(-1, order, kept)
    return kept / kept.sum(-1, keepdim=True)
    ### END SOLUTION


# %%
def by_counting(logits, temperature, top_p):
    """The same, slowly: for each token the sum of all that are more probable."""
    p = torch.softmax(logits / temperature, -1)
    before = torch.stack([torch.where(p > p[:, [i]], p, 0.0).sum(-1) for i in range(p.shape[1])], -1)
    kept = torch.where(before < top_p, p, 0.0)
    return kept / kept.sum(-1, keepdim=True)


def crossing_left_out(logits, temperature, top_p):
    p = torch.softmax(logits / temperature, -1)
    until = torch.stack([torch.where(p >= p[:, [i]], p, 0.0).sum(-1) for i in range(p.shape[1])], -1)
    kept = torch.where(until <= top_p, p, 0.0)
    return kept / kept.sum(-1, keepdim=True)


mistakes = {"without the token that crosses the line": crossing_left_out}

# %% tests="distribution" points=2
cases = [{"logits": (r, v), "temperature": t, "top_p": p} for r, v, t, p in [(1, 5, 1.0, 0.9), (3, 33, 0.7, 0.8), (4, 50, 1.5, 0.5)]]
lk.check_against(by_counting, distribution, cases, mistakes=mistakes);

# %% [markdown]
# ## A draw is a maximum
# To draw from probabilities one usually adds them up until the sum passes a random number. That is one token after the other: nothing for a
# thousand threads. There is a better way. Give each token a random number of its own, $-\ln(-\ln u)$ with *u* uniform between 0 and 1, add
# it to the logit over the temperature, and take the largest:
#
# $$ \text{token} = \arg\max_i \Big(\frac{x_i}{T} - \ln(-\ln u_i)\Big) $$
#
# Token *i* wins with exactly the probability that the softmax gives it. *Why.* Think of clocks that ring at random. $-\ln u$ is how long one
# waits for a clock that rings once a second on average; for a clock that is $e^{x_i/T}$ times as fast it is $-\ln u_i \,/\, e^{x_i/T}$. The
# bracket is minus the logarithm of this time, so the largest bracket is the clock that rings first. And the chance to be first is a clock's
# share of all the speeds: $e^{x_i/T} / \sum_j e^{x_j/T}$.
#
# No softmax, no sum, no second pass: a maximum, which a warp finds as in lab 02. (It is called the *Gumbel-max trick*.)
#
# **Write** it for one warp a row: each lane finds the best of the tokens *lane*, *lane* + 32 and so on; then five exchanges find the best of
# all. Of equal values the lower token wins, in the loop and between lanes, so that the result is always the same.

# %% solution="gumbel"
%%cuda --name draw
#include <math_constants.h>
// logits, u (rows, vocab); token (rows,), as a float, which the check compares. One warp a row.
__global__ void draw(const float* logits, const float* u, float* token, int vocab, float temperature) {
    const int row = blockIdx.x, lane = threadIdx.x;
    float best = -CUDART_INF_F;
    int best_token = vocab;
    // BEGIN SOLUTION
    for (int i = lane; i < vocab; i += 32) {
        const float value = logits[row * vocab + i] / temperature - logf(-logf(u[row * vocab + i]));
        if (value > best) best = value, best_token = i;
    }
    for (int distance = 16; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(0xffffffff, best, distance);
        const int other_token = __shfl_xor_sync(0xffffffff, best_token, distance);
        if (other > best || other == best && other_token < best_token) best = other, best_token = other_token;
    }
    // END SOLUTION
    if (lane == 0) token[row] = best_token;
}

# %%
def launch_draw(logits, u, temperature):
    token = torch.empty(len(logits), device=logits.device)
    draw(len(logits), 32, (logits, u, token, logits.shape[1], temperature))
    return token


def my_draw(logits, noise, temperature):
    """`noise` is normally distributed; this makes it uniform, and never 0 or 1: ln 0 is -inf."""
    return launch_draw(logits, torch.special.ndtr(noise).clamp(1e-6, 1 - 1e-6), temperature)


def reference_draw(logits, noise, temperature):
    u = torch.special.ndtr(noise).clamp(1e-6, 1 - 1e-6)
    return (logits / temperature - torch.log(-torch.log(u))).argmax(-1).to(logits.dtype)


mistakes = {
    "the largest logit, without chance": lambda logits, noise, temperature: logits.argmax(-1).to(logits.dtype),
    "that at temperature 1": lambda logits, noise, temperature: reference_draw(logits, noise, 1.0),
}

# %% tests="gumbel" points=3
cases = [{"logits": (r, v), "noise": (r, v), "temperature": t} for r, v, t in [(1, 1, 1.0), (9, 33, 0.7), (20, 100, 3.0), (5, 31, 0.1)]]
lk.check_against(reference_draw, my_draw, cases, mistakes=mistakes);
tied = torch.zeros(2, 70, device=device)
tied[0, [5, 33]] = tied[1, [1, 33]] = 1.0
got = launch_draw(tied, torch.full_like(tied, 0.5), 1.0).tolist()
assert got == [5, 1], f"tokens 5 and 33 are equal in row 0, 1 and 33 in row 1: got {got}, want the lower ones, [5, 1]"

# %% [markdown]
# Is it really the softmax that one draws from? Count 20 000 draws from 6 tokens. For each token take how far its count is from what it should
# be, square that, and divide by what it should be; the sum is called *chi-square*. If only chance is at work it is 5 on average (one less
# than there are tokens), and above 20.5 once in a thousand times.

# %%
logits = torch.tensor([1.5, 1.0, 0.2, 0.0, -0.5, -2.0])
expected = 20_000 * logits.softmax(0)
u = torch.rand(20_000, 6, generator=generator).clamp(1e-6, 1 - 1e-6)
drawn = launch_draw(logits.expand(20_000, 6).contiguous().to(device), u.to(device), 1.0).long().cpu()
chi_square = ((torch.bincount(drawn, minlength=6) - expected) ** 2 / expected).sum()
print("expected:", expected.round().int().tolist())
print("drawn:   ", torch.bincount(drawn, minlength=6).tolist())
print("chi-square below 20.5:", bool(chi_square < 20.5))

# %% [markdown]
# ## Chance without memory
# Where do the random numbers come from? A generator that hands out one number after the other would make a row's draw depend on which rows
# came before it. Then a user's answer changes with who else is being served. A *counter-based* generator has no state: it scrambles the bits
# of what you ask for. The number of token *i*, *n* tokens into the text, is a function of the row's seed, *n* and *i*, and of nothing else.

# %%
def scramble(x):
    """32 bits that look like chance, from 32 bits."""
    x = (x + 0x9E3779B9) & 0xFFFFFFFF                # else 0 would stay 0
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * multiplier) & 0xFFFFFFFF
    return x ^ (x >> 16)


def uniform(seed, position, token):
    return (scramble(scramble(scramble(seed) + position) + token) + 0.5) / 2**32


print("seed 42, position 3, tokens 0 to 3:", *[f"{uniform(42, 3, token):.3f}" for token in (0, 1, 2, 3)])
print("asked for last first:              ", *[f"{uniform(42, 3, token):.3f}" for token in (3, 2, 1, 0)])

# %% [markdown]
# Each thread asks for the numbers of its own tokens, in whatever order. (The package's kernels scramble with *Philox*, which has ten rounds.)
#
# ## A nucleus without a sort
# The nucleus is what has at least a certain probability. So all that is missing is one number, the threshold *t*: the largest for which
# the tokens with $p \ge t$ still have `top_p` together. (Tokens that are equally probable now stay or go together. A sort would part them.)
# For a given *t* that is a sum, which a block computes in a moment. And *t* can be *searched*, as a number is guessed with yes and no.
#
# Guess its bits. Floats that are not negative are in the same order as their bits read as integers, and up to 1.0 they have no bit above
# bit 29. Begin with 0, and set bit 29: if the tokens that reach this threshold still have `top_p`, it stays, else it goes. Then the next
# bit. After all 30 the threshold is exact. The picture shows the first twelve:

# %%
lk.draw.bit_search()

# %% [markdown]
# **Write** the search. `block_sum(x)` gives every thread the sum of all threads' `x`; all threads must call it. `__int_as_float` reads bits as
# a float. When the search ends, `threshold` holds the bits of *t*.

# %% solution="nucleus"
%%cuda --name nucleus
__device__ float block_sum(float x) {
    __shared__ float of_warp[4];
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffff, x, distance);
    __syncthreads();                     // everybody has read the sums of the call before
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    return of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3];
}

// p, kept (rows, vocab). A block of 128 threads has a row.
__global__ void nucleus(const float* p, float* kept, int vocab, float top_p) {
    p += blockIdx.x * vocab;
    kept += blockIdx.x * vocab;
    int threshold = 0;
    for (int bit = 1 << 29; bit > 0; bit >>= 1) {
        // BEGIN SOLUTION
        const float tried = __int_as_float(threshold | bit);
        float sum = 0.0f;
        for (int i = threadIdx.x; i < vocab; i += 128) sum += p[i] >= tried ? p[i] : 0.0f;
        if (block_sum(sum) >= top_p) threshold |= bit;
        // END SOLUTION
    }
    float sum = 0.0f;
    for (int i = threadIdx.x; i < vocab; i += 128) sum += p[i] >= __int_as_float(threshold) ? p[i] : 0.0f;
    const float total = block_sum(sum);
    for (int i = threadIdx.x; i < vocab; i += 128) kept[i] = p[i] >= __int_as_float(threshold) ? p[i] / total : 0.0f;
}

# %%
def my_nucleus(logits, temperature, top_p):
    p = torch.softmax(logits / temperature, -1)
    kept = torch.empty_like(p)
    nucleus(len(p), 128, (p, kept, p.shape[1], top_p))
    return kept


mistakes = {
    "without the token that crosses the line": crossing_left_out,
    "the softmax of all tokens": lambda logits, temperature, top_p: torch.softmax(logits / temperature, -1),
}

# %% tests="nucleus" points=4
sizes = [(1, 5, 1.0, 0.9), (3, 33, 0.7, 0.8), (2, 300, 1.5, 0.5), (2, 129, 1.0, 0.05)]
cases = [{"logits": (r, v), "temperature": t, "top_p": p} for r, v, t, p in sizes]
lk.check_against(by_counting, my_nucleus, cases, mistakes=mistakes);

# %% [markdown]
# Thirty passes over a row. But the row is 0.5 MB, stays in the L2 cache, and nothing of it is ever moved. A sort writes all of it, several
# times, and the order of 128 000 tokens is of no use to anybody.
#
# *Top-k* keeps the *k* most probable tokens. It is the same search with a count in place of the sum: the largest threshold that at least *k*
# tokens reach.
#
# ## The ladder
# Top-k 50, then top-p 0.9, of 128 256 logits. `hf_sort` is the recipe with a sort; `topk_first` asks `torch.topk` for 50 tokens, and does the
# rest on those. With a GPU all are measured now; without one you see what an H200 has recorded.

# %%
lk.ops["sample_tokens"].variants

# %%
lk.bench("sample_tokens").plot()

# %% [markdown]
# On the H200 the recipe with the sort takes 1.35 ms for 64 rows, the search of `v2_radix` 0.38. But for one row both take 0.37: in the search one
# block works, and 131 multiprocessors watch.
#
# What helps one row is to have several blocks read it, and to search less. `v3_cluster` and `v4_look_again` find a bound that at least 50
# tokens reach, and few more do. The rest is done on those few: 0.013 ms. Without top-k there is no such bound. There `v5_race` draws first, and
# asks only the winner whether it belongs to the nucleus: 0.025 ms, where `v4_look_again` takes 0.079.
#
# `flashinfer`, a library for servers, does not sort either: 0.062 ms for one row, 0.073 for 64, where `v5_race` takes 0.033. But of 64 rows
# without top-k and top-p it draws in 0.047 ms, and `v5_race` in 0.054.

# %% [markdown]
# ## One call
# What a server wants: a batch in which every row has settings of its own, and a draw that does not depend on the others.

# %%
logits = random(3, vocab)
settings = {"temperature": torch.tensor([0.0, 0.7, 1.2], device=device), "top_p": torch.tensor([1.0, 0.9, 0.8], device=device)}
seeds = torch.tensor([11, 12, 13], device=device)
together = lk.functional.sample_tokens(logits, **settings, seed=seeds)
alone = lk.functional.sample_tokens(logits[2:], temperature=1.2, top_p=0.8, seed=13)
print("temperature 0 takes the largest:", bool(together[0] == logits[0].argmax()))
print("the third row alone draws the same token:", bool(together[2] == alone[0]))

# %% [markdown]
# ## Still wasted
# - **Passes.** Your search reads the row for each bit. A histogram of the exponents, filled in one pass, settles eight bits at once.
#   `v2_radix` takes eleven bits a pass.
# - **Waiting.** The limit in the plot is the time to read the logits once: 0.1 µs for one row. The launch alone takes longer, and so does each
#   time that blocks wait for each other.
# - **The logits themselves.** The last product writes 128 256 numbers, and this kernel reads them. The product could keep the best few of
#   each tile before it writes it.
#
# What would you add next? And a question: with top-p 0.9, is the threshold after top-k the same as before it? Which order does
# a user expect?
