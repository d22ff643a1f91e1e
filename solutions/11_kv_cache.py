# %% [markdown]
# # 11 The KV cache
# A language model writes one token at a time. Each new token looks at all tokens before it. Their keys and values were computed when it was
# their turn, and no later token changes them, for nobody looks ahead. Kept, they need not be computed again. That is the *KV cache*, and
# it turns attention into another problem: no longer how to multiply, but how to read.
#
# You write a merge, two kernels and a page allocator. You need lab 05.

# %% tags=["parameters"] again={"seed": 7, "tokens": 77}
seed = 0
tokens = 50          # in the cache of the examples; odd sizes welcome

# %%
%load_ext labkernels
import math

import torch

import labkernels as lk

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(seed)


def random(*shape):
    return torch.randn(shape, generator=generator).to(device)


def blocks(count, size):
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


# %% [markdown]
# ## Keep what will be asked for again

# %%
lk.draw.cached_tokens()

# %% [markdown]
# With a cache each step computes the keys and values of one token, however many there are. What grows is the memory, and what attention
# reads of it. Take a model of the size of Llama 3 8B: 32 layers, 32 heads of queries, and as in lab 04 each group of 4 shares a head of
# keys and values. That is 8 heads of keys and 8 of values, each of 128 numbers in bfloat16.
#
# **Predict.** How many bytes does one token add to the cache, in all layers? And 32 conversations of 8192 tokens each: how many GB
# (10⁹ bytes) do they hold, all of which must be read for the next token of each?

# %% solution="predict-cache"
token_bytes = cache_gb = None
### BEGIN SOLUTION
token_bytes = 32 * 8 * 128 * 2 * 2          # layers, heads, numbers, bytes; keys and values
cache_gb = 32 * 8192 * token_bytes / 1e9
### END SOLUTION

# %% tests="predict-cache" points=1
lk.check_prediction("cache bytes", token_bytes, cache_gb)

# %% [markdown]
# That is twice as much as the model's own weights, 8 billion of 2 bytes. An H200 reads it in

# %%
print(f"{cache_gb * 1e9 / 4.8e12 * 1000:.1f} ms at 4.8 TB/s")

# %% [markdown]
# Each number that is read, 2 bytes, is multiplied and added 4 times, once for each query of its group: 8 FLOPs, or 4 a byte. Tensor cores that can
# do 206 FLOPs in the time of a byte have next to nothing to do. *Decode attention*, with one query for each sequence and head, is bound by
# memory through and through. Its limit is the time to read the cache once.
#
# ## One long sequence, many multiprocessors
# In lab 05 a block had a tile of queries, and walked over the keys. Now there is one query. With one conversation and 32 heads that makes 32
# blocks, on a GPU with 132 multiprocessors, and each has a long walk. So the *keys* are split. Each block walks over its part, as if there
# were no others. Here is one head:

# %%
lk.draw.split_keys()

# %% [markdown]
# Each part *i* gives an output $o_i$, with weights that sum to 1 within the part, and its *log-sum-exp* $l_i = \log \sum e^x$ over the part's
# scores $x$. So $e^{l_i}$ is the sum of its exponentials, and its share of the whole is its share of that sum:
#
# $$ o = \sum_i w_i\, o_i, \qquad w_i = \frac{e^{l_i}}{\sum_j e^{l_j}} $$
#
# A softmax once more, over parts. And mind what you know of it: $e^{l}$ overflows for $l$ above 88, so subtract the largest first. A part
# in which the query saw no key has $l = -\infty$.
#
# **Write** the merge. `torch.softmax` may be used; it does what it should with $-\infty$, as long as one part has a key.

# %% solution="merge"
def merge(outs, lses):
    """outs (parts, heads, head_dim), lses (parts, heads): the output of the whole, (heads, head_dim)."""
    ### BEGIN SOLUTION
    weights = torch.softmax(lses, dim=0)
    return (weights[..., None] * outs).sum(0)
    ### END SOLUTION


# %%
def merged(q, k, v, parts):
    """q (heads, head_dim), k and v (heads, tokens, head_dim), the tokens in parts of one size; the last may be shorter."""
    outs, lses = [], []
    for k_part, v_part in zip(k.chunk(parts, 1), v.chunk(parts, 1)):
        scores = (q[:, None] * k_part).sum(-1)
        outs.append((scores.softmax(-1)[..., None] * v_part).sum(1))
        lses.append(scores.logsumexp(-1))
    return merge(torch.stack(outs), torch.stack(lses))


def whole(q, k, v, parts):
    return ((q[:, None] * k).sum(-1).softmax(-1)[..., None] * v).sum(1)


def plain_average(q, k, v, parts):
    return torch.stack([whole(q, *part, 1) for part in zip(k.chunk(parts, 1), v.chunk(parts, 1))]).mean(0)


# %% tests="merge" points=2
cases = [{"q": (h, d), "k": (h, t, d), "v": (h, t, d), "parts": parts} for h, t, d, parts in [(1, 2, 4, 2), (2, 33, 8, 3), (3, 50, 16, 7)]]
lk.check_against(whole, merged, cases, mistakes={"the plain average of the parts": plain_average});
empty = merge(torch.tensor([[[3.0]], [[7.0]]]), torch.tensor([[-math.inf], [100.0]]))
assert empty.item() == 7.0, f"a part without keys has no weight, and e^100 must not overflow: got {empty.item()}, want 7.0"

# %% [markdown]
# ## A warp walks over its part
# Now as a kernel. A block is one warp, with one query of 64 numbers and a part of the keys; a lane has two of the 64 columns, `2 * lane` and
# the next. For each key the lanes multiply what they have, and five shuffles make it one score, known to all. Then comes the step of the
# online softmax from lab 02 and lab 05, with the running maximum `m`, the sum `s`, and the output so far:
#
# $$ m' = \max(m, x), \qquad s' = s\,e^{m - m'} + e^{x - m'}, \qquad o' = o\,e^{m - m'} + e^{x - m'}\, v $$
#
# **Write** that step: update `m`, `s`, `out0` and `out1`, given the key's `score` and its two numbers `v0` and `v1` of *v*.

# %% solution="split-decode"
%%cuda --name split_decode
#include <math_constants.h>
// q (heads, 64); k, v (heads, tokens, 64); outs (parts, heads, 64), lses (parts, heads). One warp a block, grid (parts, heads).
__global__ void split_decode(const float* q, const float* k, const float* v, float* outs, float* lses, int heads, int tokens, int part_size,
                             float scale) {
    const int part = blockIdx.x, head = blockIdx.y, lane = threadIdx.x, column = 2 * lane;
    const float q0 = q[head * 64 + column] * scale, q1 = q[head * 64 + column + 1] * scale;
    float m = -CUDART_INF_F, s = 0.0f, out0 = 0.0f, out1 = 0.0f;
    for (int key = part * part_size; key < min(tokens, (part + 1) * part_size); ++key) {
        const int at = (head * tokens + key) * 64 + column;
        float score = q0 * k[at] + q1 * k[at + 1];
        for (int distance = 16; distance > 0; distance /= 2) score += __shfl_xor_sync(0xffffffff, score, distance);
        const float v0 = v[at], v1 = v[at + 1];
        // BEGIN SOLUTION
        const float top = fmaxf(m, score), correction = __expf(m - top), p = __expf(score - top);
        m = top;
        s = s * correction + p;
        out0 = out0 * correction + p * v0;
        out1 = out1 * correction + p * v1;
        // END SOLUTION
    }
    outs[(part * heads + head) * 64 + column] = s > 0.0f ? out0 / s : 0.0f;
    outs[(part * heads + head) * 64 + column + 1] = s > 0.0f ? out1 / s : 0.0f;
    if (lane == 0) lses[part * heads + head] = m + logf(s);
}

# %%
def my_decode(q, k, v, part_size):
    (heads, head_dim), tokens = q.shape, k.shape[1]
    parts = blocks(tokens, part_size)
    outs, lses = torch.empty(parts, heads, head_dim, device=q.device), torch.empty(parts, heads, device=q.device)
    split_decode((parts, heads), 32, (q, k, v, outs, lses, heads, tokens, part_size, head_dim**-0.5))
    return merge(outs, lses)


def decode(q, k, v, part_size):
    scores = (q[:, None] * k).sum(-1) * q.shape[-1] ** -0.5
    return (scores.softmax(-1)[..., None] * v).sum(1)


def case(heads, tokens, part_size):
    return {"q": (heads, 64), "k": (heads, tokens, 64), "v": (heads, tokens, 64), "part_size": part_size}


# %% tests="split-decode" points=3
lk.check_against(decode, my_decode, [case(1, 1, 8), case(2, 33, 8), case(1, 100, 32), case(3, 40, 64)]);

# %% [markdown]
# Each key and value is read once, by one warp. A part costs 65 numbers more for each head, its output and its log-sum-exp, as much as half a
# token's key and value. How many parts? Enough that all multiprocessors are busy; more only make the merge longer.
#
# ## Pages
# Where does the cache of a conversation lie? If each has room for the longest answer that there may be, most of the memory is reserved
# and empty. If it has only what it needs, it must move when it grows. Operating systems had this problem first, and solved it with *pages*.
# The memory is cut into pages of, say, 64 tokens. A conversation has a *block table*: the numbers of its pages, in order, wherever they lie.

# %%
lk.draw.cache_pages()

# %% [markdown]
# Two conversations that begin with the same text, as all with the same system prompt do, can name the same pages: that part of the
# cache is there once.
#
# **Write** the address of a key in a paged cache. `k` and `v` are (pages, heads, page_size, 64). `key / page_size` says which entry of the table,
# and that says which page. `row` counts rows of 64 numbers from the start of the tensor. To keep it short, one warp walks over all keys again.

# %% solution="paged-decode"
%%cuda --name paged_decode
#include <math_constants.h>
// q, out (heads, 64); k, v (pages, heads, page_size, 64); table (entries,), the sequence's pages in order. One warp a head.
__global__ void paged_decode(const float* q, const float* k, const float* v, const int* table, float* out, int heads, int tokens,
                             int page_size, float scale) {
    const int head = blockIdx.x, lane = threadIdx.x, column = 2 * lane;
    const float q0 = q[head * 64 + column] * scale, q1 = q[head * 64 + column + 1] * scale;
    float m = -CUDART_INF_F, s = 0.0f, out0 = 0.0f, out1 = 0.0f;
    for (int key = 0; key < tokens; ++key) {
        int row;
        // BEGIN SOLUTION
        const int page = table[key / page_size];
        row = (page * heads + head) * page_size + key % page_size;
        // END SOLUTION
        const int at = row * 64 + column;
        float score = q0 * k[at] + q1 * k[at + 1];
        for (int distance = 16; distance > 0; distance /= 2) score += __shfl_xor_sync(0xffffffff, score, distance);
        const float top = fmaxf(m, score), correction = __expf(m - top), p = __expf(score - top);
        m = top;
        s = s * correction + p;
        out0 = out0 * correction + p * v[at];
        out1 = out1 * correction + p * v[at + 1];
    }
    out[head * 64 + column] = out0 / s;
    out[head * 64 + column + 1] = out1 / s;
}

# %%
def my_paged_decode(q, k, v, tokens, page_size):
    """The pages are handed out backwards; page 0 is nobody's."""
    heads = q.shape[0]
    needed = blocks(tokens, page_size)
    table = torch.arange(needed, 0, -1, dtype=torch.int32, device=q.device)
    out = torch.empty_like(q)
    paged_decode(heads, 32, (q, k, v, table, out, heads, tokens, page_size, q.shape[-1] ** -0.5))
    return out


def paged_reference(q, k, v, tokens, page_size):
    order = range(blocks(tokens, page_size), 0, -1)
    k, v = (torch.cat([x[page] for page in order], dim=1)[:, :tokens] for x in (k, v))
    return decode(q, k, v, tokens)


def in_order(q, k, v, tokens, page_size):
    k, v = (torch.cat(list(x), dim=1)[:, :tokens] for x in (k, v))
    return decode(q, k, v, tokens)


def paged_case(heads, tokens, page_size):
    pages = (blocks(tokens, page_size) + 1, heads, page_size, 64)
    return {"q": (heads, 64), "k": pages, "v": pages, "tokens": tokens, "page_size": page_size}


# %% tests="paged-decode" points=2
cases = [paged_case(1, 1, 4), paged_case(2, 9, 4), paged_case(3, 33, 16)]
lk.check_against(paged_reference, my_paged_decode, cases, mistakes={"as if the pages lay in order, from page 0": in_order});

# %% [markdown]
# ## Who has which page
# Somebody must know which pages are free. A page that several conversations name may only be given back when the last of them is done:
# it has a *reference count*. And nobody may write into a page that others read. Whoever is about to write gets a copy first: *copy on write*.
#
# `fork` makes a second conversation with the same tokens, as sampling several answers to one prompt does. **Write** it, and the first lines
# of `append`, which finds room for one more token:
#
# 1. `fork(name, other)`: `other` names the same pages and has the same length; each page has one reference more.
# 2. In `append`, if the last page has room but others name it, too: take a page of its own for this conversation with `self.take()`, let go of
#    the shared one, put the new page in its place in the table, and note `(shared, own)` in `self.copies`, for a kernel to copy.

# %% solution="pages"
class Pages:
    """Pages of `size` tokens; conversations by name."""

    def __init__(self, count, size):
        self.size, self.free, self.references = size, list(range(count)), [0] * count
        self.tables, self.lengths, self.copies = {}, {}, []

    def take(self):
        if not self.free:
            raise MemoryError("no page is free")
        page = self.free.pop()
        self.references[page] = 1
        return page

    def let_go(self, page):
        self.references[page] -= 1
        if self.references[page] == 0:
            self.free.append(page)

    def add(self, name):
        self.tables[name], self.lengths[name] = [], 0

    def fork(self, name, other):
        ### BEGIN SOLUTION
        self.tables[other], self.lengths[other] = list(self.tables[name]), self.lengths[name]
        for page in self.tables[name]:
            self.references[page] += 1
        ### END SOLUTION

    def append(self, name):
        """Room for one more token: (page, place in it)."""
        table, place = self.tables[name], self.lengths[name] % self.size
        if place == 0:
            table.append(self.take())
        ### BEGIN SOLUTION
        elif self.references[table[-1]] > 1:
            own, shared = self.take(), table[-1]
            self.let_go(shared)
            table[-1] = own
            self.copies.append((shared, own))
        ### END SOLUTION
        self.lengths[name] += 1
        return table[-1], place

    def finish(self, name):
        for page in self.tables.pop(name):
            self.let_go(page)
        del self.lengths[name]


# %% [markdown]
# The test plays conversations at random, and writes down in each place whose token lies there. Whatever happens, every conversation must
# find its own tokens, and at the end all pages must be free.

# %% tests="pages" points=4
pages, written, texts = Pages(64, 4), {}, {}
dice = torch.Generator().manual_seed(0)


def throw(sides):
    return int(torch.randint(sides, (1,), generator=dice))


for turn in range(600):
    names = sorted(texts)
    what = throw(8) if names else 0
    if what == 0 and len(names) < 6:
        pages.add(turn)
        texts[turn] = []
    elif what == 1 and names and len(names) < 6:
        name = names[throw(len(names))]
        pages.fork(name, turn)
        texts[turn] = list(texts[name])
    elif what == 2 and len(names) > 1:
        name = names[throw(len(names))]
        pages.finish(name)
        del texts[name]
    elif names:
        name = names[throw(len(names))]
        if len(texts[name]) < 40:
            page, place = pages.append(name)
            for source, target in pages.copies:
                written.update({(target, i): written[source, i] for i in range(4) if (source, i) in written})
            pages.copies.clear()
            written[page, place] = turn
            texts[name].append(turn)
    for name, text in texts.items():
        found = [written.get((pages.tables[name][i // 4], i % 4)) for i in range(len(text))]
        wrong = [i for i in range(len(text)) if found[i] != text[i]]
        assert not wrong, f"turn {turn}: conversation {name} does not find its token {wrong[0]}. Who wrote there? Or was a copy not noted?"
for name in list(texts):
    pages.finish(name)
assert sorted(pages.free) == list(range(64)), f"{64 - len(set(pages.free))} pages are lost, or some are free twice"

# %% [markdown]
# The package's allocator also shares pages between conversations that never heard of each other, when they begin with the same tokens; and when
# too few pages are free it raises `OutOfPages` before it changes anything. Below, two prompts have 8 tokens in common, two full pages. The
# second has no page for its ninth token yet: `append` takes one.

# %%
from labkernels.kvcache.pages import PageAllocator

allocator = PageAllocator(num_pages=8, page_size=4)
first, shared = allocator.add(list(range(10)))
allocator.append(first, range(10))
second, shared = allocator.add([*range(8), 99])
print("tokens of the second prompt that are in the cache already:", shared)
print("pages of the first: ", allocator.pages(first))
print("pages of the second:", allocator.pages(second))

# %% [markdown]
# ## The ladder
# One query for each sequence and head, 32 heads in 8 groups of 4. `v1` reads each key four times. From `v2` on the four queries of a group share
# what was read, from `v3` on the keys are split, and from `v4` on the four queries are rows of a product on tensor cores. With a GPU all
# are measured now; without one you see what an H200 has recorded.

# %%
lk.bench("decode_attention", length=[1024, 8192], batch=[1, 8]).plot()

# %% [markdown]
# With 8 sequences of 8192 tokens `v4` and `v6` are at 87 and 88% of the limit, cuDNN at 84%. With one of 1024 nobody is near it: 4 MB are read in a
# microsecond, and the best, `v5`, takes 6.4. The rest is waiting, for the launch, for the first keys, for the parts of others.
#
# FlashInfer, a library of kernels for servers, reads pages only, and so is not in this picture; neither are 32 sequences of 32 768 tokens. Of those
# the best read as fast as memory gives: cuDNN 947 µs, `v6` 953; in pages `v6` 962, FlashInfer 965.
#
# ## Fewer bytes
# What is bound by reading should get faster by reading less. In int8, with a scale for each token and head, a key takes about half the room:

# %%
def as_int8(x):
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().to(torch.int8), scale


k, v, q = random(2, tokens, 64), random(2, tokens, 64), random(2, 64)
exact = decode(q, k, v, tokens)
(k8, k_scale), (v8, v_scale) = as_int8(k), as_int8(v)
error = (decode(q, k8 * k_scale, v8 * v_scale, tokens) - exact).norm() / exact.norm()
print("relative error below 1%:", bool(error < 0.01))
print("bytes of a key, and in int8 its scale: float32", 64 * 4, " bfloat16", 64 * 2, " int8", 64 + 4)

# %% [markdown]
# Twice as many conversations fit. And the time? 32 sequences of 8192 tokens, in pages of 64:

# %%
lk.bench("decode_attention", ["v4_tensor_cores", "v6_guess"], length=[8192], batch=[32], page_size=[64], cache=["same", "int8"])

# %% [markdown]
# Half of the bytes, and on the H200 not quite half of the time: in `v4` 248 µs become 154, in `v6` 247 become 137. In bfloat16 both are at 94%
# of the limit. In int8 that is 120 µs, and there is more to do for each byte: every number must be converted before it is multiplied.

# %% [markdown]
# ## Still wasted
# - **The merge.** Here it is a second step, with launches of its own. From `v4` on the package merges inside of the first: the block that ends
#   last does it, or, in `v5`, the blocks of a head hand each other what they found.
# - **Tables.** Each key looks up its page. One look for a page would do.
# - **Prompts that differ in the middle.** Only common beginnings are shared, because a key knows what came before it.
#
# What would you add next? And a question: a page of 64 tokens is half empty on average at the end of each conversation. What would pages of
# one token cost, and whom?
