# %% [markdown]
# # 16 Scaling out
# Two GPUs can do twice as much, if they do not wait for each other. A step of training takes a quarter of a second, and at its end all
# GPUs must have the same weights. So what they send to each other, how much of it and when, is what scaling is about.
#
# You write the sum around a ring that all of it is made of, then three ways to share a training: the data, the optimiser, the matrices.
# Here the GPUs are processes on your CPU; they send the same bytes. You need lab 14.

# %% tags=["parameters"] again={"seed": 7, "numbers": 36}
seed = 0
numbers = 24         # in the examples' tensors; multiples of 12

# %%
%load_ext labkernels
import torch
import torch.distributed as dist
from torch.nn import functional as F

import labkernels as lk
from labkernels.llm import ModelConfig, Transformer
from labkernels.llm.parallel import ranks, traffic

torch.set_num_threads(1)


def random(*shape, number=0):
    """The same numbers on every rank, others for every `number`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 * seed + number))


# %% [markdown]
# ## Processes that talk
# A program that runs on several GPUs is one process a GPU, and all run the same code. A process is called a *rank* and has a number. What
# it computes depends on that number alone. `ranks.run` starts some on this machine; for GPUs it is `torchrun`.

# %%
def hello():
    rank, count = dist.get_rank(), dist.get_world_size()
    x = torch.tensor([10.0 ** rank])
    dist.all_reduce(x)              # a collective: every rank calls it, and every rank gets the sum
    print(f"rank {rank} of {count}: the sum is {x.item():g}")


ranks.run(hello, 3);

# %% [markdown]
# ## A sum around a ring
# Say each of *n* ranks has a tensor of *B* bytes, and all want the sum. One of them could collect everything: it would receive $(n - 1) B$
# bytes, while the links of the others stand idle. On a ring all links work all the time. Cut the tensor into *n* pieces. In each step every
# rank sends one piece to the next:

# %%
lk.draw.ring_all_reduce()

# %% [markdown]
# A row is a rank, a cell is a piece, and its digits say whose numbers are in it. In the first half, the *reduce-scatter*, what arrives
# (orange) is added, and moves on in the next step. After $n - 1$ steps rank *r* has the whole sum of piece *r*. In the second half, the
# *all-gather*, finished pieces are passed on.
#
# `exchange(piece)` sends a tensor to the next rank and returns what the one before sent, of the same shape.

# %%
sent_bytes = 0


def exchange(piece):
    global sent_bytes
    rank, count = dist.get_rank(), dist.get_world_size()
    arrived = torch.empty_like(piece)
    sending = dist.isend(piece.contiguous(), (rank + 1) % count)
    dist.recv(arrived, (rank - 1) % count)
    sending.wait()
    sent_bytes += piece.nbytes
    return arrived


# %% [markdown]
# **Write** the first half. Which piece does rank *r* send in the first step, so that it ends with piece *r*? Look at the picture.

# %% solution="reduce-scatter"
def reduce_scatter(x):
    """x (numbers,), a multiple of the number of ranks: the sum of piece r on rank r. x stays as it is."""
    rank, count = dist.get_rank(), dist.get_world_size()
    pieces = list(x.clone().chunk(count))
    ### BEGIN SOLUTION
    for step in range(count - 1):
        send, receive = (rank - step - 1) % count, (rank - step - 2) % count
        pieces[receive] += exchange(pieces[send])
    ### END SOLUTION
    return pieces[rank]


# %%
def reduced():
    x = random(numbers, number=dist.get_rank())
    before = x.clone()
    piece = reduce_scatter(x)
    assert torch.equal(x, before), "x has been changed; it must stay as it is"
    return piece, sent_bytes


# %% tests="reduce-scatter" points=2
for count in (1, 2, 3, 4):
    total = sum(random(numbers, number=rank) for rank in range(count))
    for rank, (piece, sent) in enumerate(ranks.run(reduced, count, timeout_s=15)):
        want = total.chunk(count)[rank]
        who = f"rank {rank} of {count}"
        assert torch.allclose(piece, want, atol=1e-5), f"{who}: the piece begins with {piece[0]:.3f}; the sum does with {want[0]:.3f}"
        assert sent == (count - 1) * want.nbytes, f"{who} sent {sent} bytes; {(count - 1) * want.nbytes} are enough"

# %% [markdown]
# **Write** the second half.

# %% solution="all-gather"
def all_gather(piece):
    """piece (numbers,) of each rank: all of them, in the order of ranks."""
    rank, count = dist.get_rank(), dist.get_world_size()
    pieces = [torch.zeros_like(piece) for _ in range(count)]
    pieces[rank] = piece
    ### BEGIN SOLUTION
    for step in range(count - 1):
        send, receive = (rank - step) % count, (rank - step - 1) % count
        pieces[receive] = exchange(pieces[send])
    ### END SOLUTION
    return torch.cat(pieces)


# %%
def gathered():
    return all_gather(random(numbers, number=dist.get_rank())), sent_bytes


# %% tests="all-gather" points=2
for count in (1, 2, 3, 4):
    want = torch.cat([random(numbers, number=rank) for rank in range(count)])
    for rank, (got, sent) in enumerate(ranks.run(gathered, count, timeout_s=15)):
        wrong = [each for each in range(count) if not torch.equal(got.chunk(count)[each], want.chunk(count)[each])]
        assert not wrong, f"rank {rank} of {count}: in the place of rank {wrong[0]}'s piece is something else"
        assert sent == (count - 1) * 4 * numbers, f"rank {rank} of {count} sent {sent} bytes; {(count - 1) * 4 * numbers} are enough"

# %% [markdown]
# Both together are an *all-reduce*. NCCL does the same between GPUs, with many pieces under way at once.
#
# **Predict.** The gradients of 645 million weights in bfloat16 are 1.29 GB. How many GB does each GPU send in an all-reduce on 2 GPUs? On 8?

# %% solution="predict-ring"
two_gpus = eight_gpus = None
### BEGIN SOLUTION
two_gpus = 2 * 1 / 2 * 1.29
eight_gpus = 2 * 7 / 8 * 1.29
### END SOLUTION

# %% tests="predict-ring" points=1
lk.check_prediction("ring bytes", two_gpus, eight_gpus)

# %% [markdown]
# However many GPUs there are, it stays below twice the tensor. At 350 GB/s 8 of them need some 6 ms, where a step of lab 14 takes a quarter of a
# second. And most of it can hide: the last layer's gradients are there first, and travel while the others are still being computed.
# PyTorch's DistributedDataParallel, *DDP*, collects them in *buckets* of 25 MB, and sends each as soon as it is full.
#
# ## Share the data
# *Data parallelism*: each rank has the whole model and its own part of the batch. The gradients are made the same, so the weights stay the
# same. The trap is the one of lab 14. Targets of -100 do not count, each rank counts its own number, and a mean of means is not the mean.
#
# **Write** the gradient of the mean over all targets that count, on all ranks. `model(inputs, targets)` is the mean loss of this rank's.

# %% solution="average"
def shared_backward(model, inputs, targets):
    """Leaves in .grad, on each rank, what one large batch would; returns the mean loss of all ranks, a float."""
    ### BEGIN SOLUTION
    own = (targets != -100).sum().float()
    counted = own.clone()
    dist.all_reduce(counted)
    loss = model(inputs, targets) * (own / counted)
    loss.backward()
    for p in model.parameters():
        dist.all_reduce(p.grad)
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item()
    ### END SOLUTION


# %%
def small_model():
    torch.manual_seed(seed)
    return Transformer(ModelConfig(vocab_size=64, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_dim=32))


def small_batch():
    tokens = torch.randint(0, 64, (6, 17), generator=torch.Generator().manual_seed(seed))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[0, 2:], targets[1, :9], targets[4, 5:8] = -100, -100, -100
    return inputs, targets


def gradients(backward):
    """The loss and the gradients, when each rank has its part of the batch."""
    model, rank, count = small_model(), dist.get_rank(), dist.get_world_size()
    inputs, targets = (part.chunk(count)[rank] for part in small_batch())
    loss = backward(model, inputs, targets)
    return loss, {name: p.grad for name, p in model.named_parameters()}


def plain_backward(model, inputs, targets):
    loss = model(inputs, targets)
    loss.backward()
    return loss.item()


# %% tests="average" points=2
[(want, right)] = ranks.run(gradients, 1, plain_backward)
for count in (2, 3):
    for rank, (loss, found) in enumerate(ranks.run(gradients, count, shared_backward, timeout_s=15)):
        who = f"rank {rank} of {count}"
        assert loss is not None and abs(loss - want) < 1e-4, f"{who}: the mean loss is {want:.4f}, got {loss}"
        for name in right:
            assert found[name] is not None, f"{who}: {name} has no gradient"
            length = f"it is {found[name].norm() / right[name].norm():.3f} times as long as it must be"
            assert torch.allclose(found[name], right[name], rtol=1e-3, atol=1e-5), f"{who}: the gradient of {name} is wrong; {length}"

# %% [markdown]
# ## Share the optimiser
# Every rank has all weights, and beside each of them, as in lab 14, 14 bytes of gradient, master and moments. All ranks have the same: that
# is a waste.
#
# An all-reduce is a reduce-scatter and an all-gather, and between the two each rank has the sum of its piece alone. That is the place for
# the optimiser. Each rank keeps the moments of its piece, changes that piece of the weights, and passes *weights* on. The same bytes are
# sent, and the moments take an *n*th of the memory. This is called *ZeRO*.
#
# **Write** it for an optimiser with one moment: $m' = \beta m + g$, $w' = w - \eta\, m'$, where *g* is the mean of all ranks' gradients. Take
# your two functions from above.

# %% solution="shared-optimizer"
def shared_step(weight, grad, moment, lr=0.1, beta=0.9):
    """weight and grad (numbers,) of this rank, moment (numbers / ranks,) of its piece.

    Returns the new weight and the new moment.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    ### BEGIN SOLUTION
    moment = beta * moment + reduce_scatter(grad) / count
    piece = weight.chunk(count)[rank] - lr * moment
    return all_gather(piece), moment
    ### END SOLUTION


# %%
def three_steps():
    rank, count = dist.get_rank(), dist.get_world_size()
    weight, moment = random(numbers, number=50), torch.zeros(numbers // count)
    for step in range(3):
        weight, moment = shared_step(weight, random(numbers, number=10 * step + rank), moment)
    return weight, moment.numel(), sent_bytes


# %% tests="shared-optimizer" points=2
for count in (2, 3):
    want, moment = random(numbers, number=50), torch.zeros(numbers)
    for step in range(3):
        moment = 0.9 * moment + sum(random(numbers, number=10 * step + rank) for rank in range(count)) / count
        want = want - 0.1 * moment
    for rank, (got, size, sent) in enumerate(ranks.run(three_steps, count, timeout_s=15)):
        who, enough = f"rank {rank} of {count}", 3 * 2 * (count - 1) * 4 * numbers // count
        assert got.shape == want.shape, f"{who}: the weights have shape {tuple(got.shape)}, want {tuple(want.shape)}"
        wrong = (got - want).abs().argmax()
        assert torch.allclose(got, want, atol=1e-5), f"{who}: after three steps weight {wrong} is {got[wrong]:.3f}, want {want[wrong]:.3f}"
        assert size == numbers // count, f"{who} keeps {size} numbers of the moment; {numbers // count} are its share"
        assert sent == enough, f"{who} sent {sent} bytes; {enough} are enough, an all-reduce in each step"

# %% [markdown]
# *FSDP* shares the weights and the gradients, too. A block's weights are gathered before it is needed, in the forward and in the backward
# pass, and dropped after it. Its gradients are reduce-scattered. That is half as much again on the links, and an *n*th of everything in memory.
#
# **Predict.** Llama 2 7B has 6.74 billion weights. Weights and gradients in bfloat16, masters and two moments in float32, 8 GPUs: how many
# GB on each, where all have everything? And where all of it is shared?

# %% solution="predict-memory"
everything = shared = None
### BEGIN SOLUTION
everything = 6.74 * (2 + 2 + 4 + 4 + 4)
shared = everything / 8
### END SOLUTION

# %% tests="predict-memory" points=1
lk.check_prediction("shared memory", everything, shared)

# %%
llama = ModelConfig.preset("llama-2-7b")
lk.draw.memory_per_rank({mode: traffic.memory_per_rank(llama, mode, 8) for mode in traffic.MODES}, limit_gb=141)

# %% [markdown]
# ## Share the matrices
# FSDP's green part are blocks that are whole for a while. The third row is *tensor parallelism*: each rank has a part of each matrix of the blocks,
# all take the same tokens, and also share the work of a single one. Where can a layer be cut, so that little is sent?
#
# An FFN is two products with an activation between. The first matrix is cut by rows:
# each rank makes some of the hidden numbers, and the activation needs no others. The second is cut by columns, which are what these
# numbers are multiplied by. Each rank then has a part of the sum, and one all-reduce ends the layer:

# %%
lk.draw.split_ffn()

# %% [markdown]
# **Write** it. As in this package, gates and ups are stacked in one matrix, all gates first. Mind what a rank needs of it: for each of its
# gates the up that it is multiplied with.

# %% solution="split-ffn"
def split_ffn(x, gate_up, back):
    """x (tokens, d), gate_up (2 hidden, d), back (d, hidden), all on each rank, which takes its part of the matrices.

    Returns (tokens, d), the whole result on each rank.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    ### BEGIN SOLUTION
    gates, ups = (half.chunk(count)[rank] for half in gate_up.chunk(2))
    hidden = F.silu(x @ gates.T) * (x @ ups.T)
    y = hidden @ back.chunk(count, dim=1)[rank].T
    dist.all_reduce(y)
    return y
    ### END SOLUTION


# %%
def ffn(x, gate_up, back):
    gate, up = (x @ gate_up.T).chunk(2, dim=1)
    return (F.silu(gate) * up) @ back.T


def split_ffn_counted(*tensors):
    with traffic.counted() as found:
        y = split_ffn(*tensors)
    return y, sum(found.values())


# %% tests="split-ffn" points=3
tensors = random(5, 8), random(2 * numbers, 8, number=1), random(8, numbers, number=2)
want = ffn(*tensors)
for count in (2, 3):
    for rank, (got, sent) in enumerate(ranks.run(split_ffn_counted, count, *tensors, timeout_s=15)):
        who = f"rank {rank} of {count}"
        assert got.shape == want.shape, f"{who}: the result has shape {tuple(got.shape)}, not {tuple(want.shape)}"
        right = torch.allclose(got, want, rtol=1e-3, atol=1e-3)
        assert right, f"{who}: got {got[0, 0]:.3f} at first, want {want[0, 0]:.3f}"
        assert sent == want.nbytes, f"{who}: {sent:.0f} bytes were all-reduced; the result's {want.nbytes} are enough, and nothing else need be sent"

# %% [markdown]
# Attention is cut the same way, by heads. That makes two all-reduces a layer forward, and two backward, of all tokens' activations, and the
# next product waits for each. So tensor parallelism stays within a machine, where links are fast.
#
# ## The same curve
# `labkernels train` does all three. Here are eight steps of a small model on one process, and on two in each way:

# %%
from labkernels.llm import TrainConfig, Trainer, corpus, prepare
from labkernels.llm.parallel.distributed import DistributedTrainer

data = prepare(corpus("stdlib", max_bytes=2_000_000), vocab_size=1024)
shape = {"embed_dim": 64, "head_dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 128}
modes = {"ddp": {"batch_size": 4}, "fsdp": {"batch_size": 4, "parallel": "fsdp"}, "tensor": {"batch_size": 8, "tensor_parallel": 2}}


def losses(trainer_class, options):
    """Eight losses, and the bytes of the last step's collectives."""
    config = TrainConfig(
        preset="10m", model=shape, steps=8, seq_len=32, lr=1e-2, warmup=1, precision="float32", seed=seed, device="cpu",
        kernels="torch", **options,
    )
    trainer = trainer_class(config, data)
    found = [trainer.train_step()["numbers"].read()[0] for _ in range(7)]
    with traffic.counted() as sent:
        found.append(trainer.train_step()["numbers"].read()[0])
    return found, dict(sent)


[(one, _)] = ranks.run(losses, 1, Trainer, {"batch_size": 8})
shared = {mode: ranks.run(losses, 2, DistributedTrainer, options)[0] for mode, options in modes.items()}
for mode, (found, _) in shared.items():
    assert torch.allclose(torch.tensor(found), torch.tensor(one), rtol=1e-3), mode
lk.draw.loss_by_mode({"one process": one} | {mode: found for mode, (found, _) in shared.items()})

# %% [markdown]
# How large were the tensors that a step's collectives took, and what do the formulas of this lab say? What `tensor` gathers is a gradient: each rank
# has the head and the loss of its own tokens alone.

# %%
import pandas

tokens = 8 * 32
config = ModelConfig.preset("10m", vocab_size=1024, **shape)
rows = []
for mode, (_, counted) in shared.items():
    expected = traffic.messages(config, mode, 2, tokens, torch.float32)
    for name, size in expected.items():
        rows.append({"mode": mode, "collective": name, "estimated kB": size / 1e3, "counted kB": counted[name] / 1e3})
pandas.DataFrame(rows).style.hide(axis="index").format(precision=1)

# %% [markdown]
# The same for the model of 645 million weights, with 16 × 2048 tokens on each of 4 GPUs, in GB that each GPU sends in a step:

# %%
model = ModelConfig.preset("645m")
for mode in traffic.MODES:
    print(f"{mode:7} {traffic.step_bytes(model, mode, 4, 16 * 2048) / 1e9:5.1f} GB")

# %% [markdown]
# And on real links? *Weak scaling* gives each GPU the same batch, however many there are; its efficiency is the tokens a second over those of as
# many GPUs alone. `alone` is one GPU while the others rest, `apart` are all of them, each for itself. With `tensor` all share one batch. `_fp8`
# has lab 14's products of 8 bits.

# %%
from labkernels.llm.parallel import recorded

recorded.scaling()

# %% [markdown]
# Two GPUs take nothing from each other: `apart` loses nothing; four lose 2% before anything is sent. What `ddp` loses beside `apart` is about what its
# bytes need at the rate of large tensors below, and with four half as much again, though they travel while the backward pass computes: what sends
# them takes multiprocessors from what computes. With fp8 the step is shorter, and the bytes are the same, so it scales worse. `fsdp` sends half as much
# again, `tensor` five times as much as `fsdp`, and meanwhile nobody computes. Four have no `tensor`: this model's 6 KV heads do not divide by 4.
#
# What a ring sends in GB a second, by the size of the whole tensor. From 1 MB to 16 the time hardly changes: so gradients travel in buckets.

# %%
recorded.links()

# %% [markdown]
# ## When one of them is gone
# With more machines it becomes likely that one fails. A rank that is gone is waited for by all others, so every wait needs an end.

# %%
def one_is_gone():
    if dist.get_rank() == 1:
        raise MemoryError("no room")
    dist.all_reduce(torch.ones(1))


try:
    ranks.run(one_is_gone, 3, timeout_s=15)
except MemoryError as error:
    print(f"{error} {error.__notes__[0]}")

# %% [markdown]
# `labkernels train` ends with the number of the rank that is gone, and the same command continues from the newest checkpoint. That holds
# whole weights, so it can be continued by any number of GPUs, in any of the three ways:
#
# ```sh
# torchrun --nproc-per-node 4 -m labkernels train --preset 645m --minutes 14 --parallel fsdp --folder runs/four
# torchrun --nproc-per-node 2 -m labkernels train --preset 645m --minutes 14 --tensor-parallel 2 --folder runs/four
# ```
#
# **Still wasted.** DDP's last bucket has nothing left to hide behind. FSDP gathers each block twice. Tensor parallelism sends while nobody
# computes. Which of them would you hide first, and behind what?
