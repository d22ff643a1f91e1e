# %% [markdown]
# # 17 A kernel becomes a torch operator
# A kernel takes pointers. PyTorch takes *operators*: functions with a name and a *schema* (what goes in, what comes out, what is changed),
# which autograd can go back through and `torch.compile` can put into a graph. This lab makes an operator of a kernel, step by step, for the
# activation in a Llama's feed-forward layers. PyTorch's own tests say when you are done.
#
# You need lab 01, and the idea of a gradient from lab 06.

# %% tags=["parameters"] again={"seed": 7, "rows": 5, "cols": 77}
seed = 0
rows, cols = 33, 100         # of the examples; odd sizes welcome

# %%
%load_ext labkernels
import torch
import torch.nn.functional as F
from torch.library import opcheck

import labkernels as lk

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(seed)


def random(*shape):
    return torch.randn(shape, generator=generator).to(device)


def blocks(count, size):
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


# %% [markdown]
# ## The kernel
# SwiGLU multiplies one tensor by another one's SiLU, element by element:
#
# $$ y = \text{silu}(g) \cdot u, \qquad \text{silu}(g) = g\,\sigma(g), \qquad \sigma(g) = \frac{1}{1 + e^{-g}} $$

# %%
%%cuda --name swiglu_forward
__global__ void swiglu_forward(const float* gate, const float* up, float* out, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

# %% [markdown]
# PyTorch has no operator for it. `F.silu(gate) * up` is two kernels: the SiLU, and the product. Each reads its inputs from memory and writes
# its result there.
#
# **Predict.** How many bytes an element do the two move, in float32, and how many does the one?

# %% solution="predict-bytes"
two_kernels = one_kernel = None
### BEGIN SOLUTION
two_kernels = 2 * 4 + 3 * 4     # silu(g); its product with u
one_kernel = 3 * 4
### END SOLUTION

# %% tests="predict-bytes" points=1
lk.check_prediction("swiglu bytes", two_kernels, one_kernel)

# %% [markdown]
# ## What PyTorch sees of a kernel
# Nothing.

# %%
gate, up = random(rows, cols).requires_grad_(), random(rows, cols)
out = torch.empty(rows, cols, device=device)
swiglu_forward(blocks(out.numel(), 256), 256, (gate.detach(), up, out, out.numel()))
print("right:", torch.allclose(out, F.silu(gate) * up, atol=1e-6))
print("knows that it came from gate:", out.requires_grad)

# %% [markdown]
# The numbers are right, but no way back leads from them to `gate`. In a model the layers after this one would train, those before it would
# not, and nobody says so. The compiler at least complains when it is told to make one graph of everything (`fullgraph`; the backend `eager`
# runs that graph as it is):

# %%
def launch(gate, up):
    out = torch.empty_like(gate)
    swiglu_forward(blocks(out.numel(), 256), 256, (gate, up, out, out.numel()))
    return out


try:
    torch.compile(launch, fullgraph=True, backend="eager")(gate.detach(), up)
except Exception as error:
    print(type(error).__name__)
torch._dynamo.reset()

# %% [markdown]
# Between a call and a kernel PyTorch has layers. In the middle is the *dispatcher*, a table: for each operator the functions that a call goes
# through, first autograd's, then the one for the tensors' device. Each layer can do its part for a kernel of yours, if it is told what it
# cannot guess:

# %%
lk.draw.operator_layers()

# %% [markdown]
# ## A name and a schema
# `torch.library.custom_op` makes an operator of a function. The schema is read off the annotations. `mutates_args=()` promises that no
# input is changed; and a result must be a new tensor, not an input or a view of one. On these promises the compiler moves calls around,
# and throws away those whose results nobody uses. (If you run this cell again, run those below it again too: it makes a new operator,
# which knows nothing of what the old one was told.)
#
# Callers promise less. A tensor may be a view: `weight.t()`, or every second column. Your kernel counts elements as they lie in memory,
# so give it tensors whose elements lie in order: `x.contiguous()` is `x` itself where they do, else a copy.
#
# **Write** the operator: launch the kernel on any two tensors of the same shape, and return a new one.

# %% solution="operator"
@torch.library.custom_op("lab17::swiglu", mutates_args=())
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    ### BEGIN SOLUTION
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    swiglu_forward(blocks(out.numel(), 256), 256, (gate, up, out, out.numel()))
    return out
    ### END SOLUTION


# %%
def reference(gate, up):
    return F.silu(gate) * up


def my_swiglu(gate, up):
    return swiglu(gate, up)


def of_views(gate, up):
    """Of a transposed tensor, and of every second column."""
    return swiglu(gate.t(), up.t()), swiglu(gate[:, ::2], up[:, ::2])


# %% tests="operator" points=3
sizes = [(1, 1), (5, 33), (3, 300)]
lk.check_against(reference, my_swiglu, [{"gate": size, "up": size} for size in sizes], isolated=False);
example = random(6, 10), random(6, 10)
for got, want in zip(of_views(*example), (reference(*example).t(), reference(*example)[:, ::2])):
    torch.testing.assert_close(got, want)
opcheck(swiglu, example, test_utils="test_schema");

# %% [markdown]
# `opcheck` is PyTorch's own judge of operators. This part of it compares what the function did with what its schema says: was an input
# changed, is the result a view of one? The operator is now also `torch.ops.lab17.swiglu`, for everybody in this process.
#
# ## A kernel without data
# To compile a model PyTorch runs it once on *fake* tensors, which have a shape, a dtype, strides and a device, and no memory. Your kernel
# cannot run on those. So it gets a stand-in, the fake kernel, which returns an empty tensor like the one the kernel would return.
#
# *Like* is meant strictly: the compiler plans the memory of all that follows by it. The strides are easily wrong. Give your operator a
# transposed tensor, and look at them:

# %%
transposed = random(10, 6).t()
print("strides of the input ", transposed.stride())
print("strides of the result", swiglu(transposed, transposed).stride())

# %% [markdown]
# **Write** the fake kernel. `torch.empty_like(x)` has the strides of `x`, if they leave no gaps; `x.new_empty(x.shape)` has elements in
# order.

# %% solution="fake"
@swiglu.register_fake
def swiglu_fake(gate, up):
    ### BEGIN SOLUTION
    return gate.new_empty(gate.shape)
    ### END SOLUTION


# %% tests="fake" points=2
for inputs in (example, (transposed, transposed.clone()), (random(4, 9)[:, ::2], random(4, 5))):
    opcheck(swiglu, inputs, test_utils="test_faketensor");

# %% [markdown]
# That is all the compiler wants for a forward pass. The whole function is one graph now, and your operator a node of it:

# %%
graphs = []


def look(graph, example_inputs):
    """A backend for torch.compile that compiles nothing: it keeps the graph."""
    graphs.append(graph)
    return graph.forward


compiled = torch.compile(lambda gate, up: torch.ops.lab17.swiglu(gate, up).mean(1), fullgraph=True, backend=look)
print("the same:", torch.equal(compiled(*example), swiglu(*example).mean(1)))
print([str(node.target) for node in graphs[0].graph.nodes if node.op in ("call_function", "call_method")])

# %% [markdown]
# ## The way back
# Say *dy* is the gradient of the loss with respect to the result *y*. Then *u* gets *dy* times silu(*g*), and *g* gets *dy* times *u* times
# the slope of silu. With $\sigma$ short for $\sigma(g)$:
#
# $$ du = dy\; g\,\sigma, \qquad dg = dy\; u\,\sigma\,(1 + g\,(1 - \sigma)) $$
#
# *Why.* The slope of $\sigma$ is $\sigma\,(1 - \sigma)$, so that of $g\,\sigma$ is $\sigma + g\,\sigma\,(1 - \sigma)$.
#
# Both gradients need $\sigma$, so one kernel computes both: three numbers are read and two written.
#
# **Write** the body of the kernel.

# %% solution="backward-kernel"
%%cuda --name swiglu_backward_kernel
__global__ void swiglu_backward_kernel(const float* grad, const float* gate, const float* up, float* grad_gate, float* grad_up,
                                       int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    // BEGIN SOLUTION
    if (i >= count) return;
    const float g = gate[i], sigma = 1.0f / (1.0f + expf(-g));
    grad_up[i] = grad[i] * g * sigma;
    grad_gate[i] = grad[i] * up[i] * sigma * (1.0f + g * (1.0f - sigma));
    // END SOLUTION
}

# %% [markdown]
# When a model is compiled its backward pass is, too: autograd's formula is run on fake tensors as well. So the second kernel must not be
# launched from there directly: fake tensors have no memory. It becomes an operator of its own, which has been done for you:

# %%
@torch.library.custom_op("lab17::swiglu_backward", mutates_args=())
def swiglu_backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    swiglu_backward_kernel(blocks(grad.numel(), 256), 256, (grad, gate, up, grad_gate, grad_up, grad.numel()))
    return grad_gate, grad_up


@swiglu_backward.register_fake
def swiglu_backward_fake(grad, gate, up):
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def both_gradients(grad, gate, up):
    return torch.stack(swiglu_backward(grad, gate, up))


def by_autograd(grad, gate, up):
    with torch.enable_grad():
        gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
        return torch.stack(torch.autograd.grad(F.silu(gate) * up, (gate, up), grad))


mistakes = {
    "right for up; gate's takes silu's slope to be sigma alone": lambda grad, gate, up: torch.stack(
        (grad * up * gate.sigmoid(), grad * F.silu(gate))),
    "the other way round: up's gradient comes first": lambda grad, gate, up: by_autograd(grad, gate, up).flip(0),
}

# %% tests="backward-kernel" points=3
cases = [dict.fromkeys(("grad", "gate", "up"), size) for size in ((1, 1), (5, 33), (3, 300))]
lk.check_against(by_autograd, both_gradients, cases, mistakes=mistakes, isolated=False);

# %% [markdown]
# Why did it call `contiguous` on the gradient? A loss is often a sum, and the gradient of a sum is the same number for every element.
# PyTorch does not write that number down many times:

# %%
leaf = random(2, 3).requires_grad_()
doubled = leaf * 2
doubled.register_hook(lambda grad: print("gradient of a sum: shape", tuple(grad.shape), "strides", grad.stride()))
doubled.sum().backward()

# %% [markdown]
# All strides 0: one float in memory. A kernel that takes the pointer and counts on from there reads what lies behind it.
#
# ## Telling autograd
# `register_autograd` takes two functions. `setup_context` runs after the forward pass: it has the inputs and the output, and keeps what the
# way back needs. `backward` gets that again, and the gradient of the result; it returns a gradient for each input, in their order.
#
# **Write** both. Keep no more than you use: what is kept stays in memory until the backward pass. Keep tensors by
# `ctx.save_for_backward(...)`, and PyTorch notices if somebody overwrites one before it is used. They come back as `ctx.saved_tensors`.

# %% solution="autograd"
def setup_context(ctx, inputs, output):
    ### BEGIN SOLUTION
    ctx.save_for_backward(*inputs)
    ### END SOLUTION


def backward(ctx, grad):
    ### BEGIN SOLUTION
    gate, up = ctx.saved_tensors
    return torch.ops.lab17.swiglu_backward(grad, gate, up)
    ### END SOLUTION


swiglu.register_autograd(backward, setup_context=setup_context)

# %% tests="autograd" points=3
leaves = [x.clone().requires_grad_() for x in example]
swiglu(*leaves).sum().backward()
for leaf, want in zip(leaves, by_autograd(torch.ones_like(example[0]), *example)):
    assert leaf.grad is not None, "an input got no gradient: return one for each of the two"
    torch.testing.assert_close(leaf.grad, want, msg=lambda text: f"a gradient is wrong; are they in the order of the inputs?\n{text}")
opcheck(swiglu, leaves);

# %% [markdown]
# That last line ran all of `opcheck`: the schema, the fake kernel, that gradients are registered where the compiler finds them, and
# a forward and backward pass traced by the compiler against the plain ones.
#
# ## It trains, compiled or not
# The feed-forward layer of a Llama, on your operator. The same layer on PyTorch's own operations stands beside it.

# %%
class FeedForward(torch.nn.Module):
    def __init__(self, dim, hidden, activation):
        super().__init__()
        self.gate, self.up = torch.nn.Linear(dim, hidden, bias=False), torch.nn.Linear(dim, hidden, bias=False)
        self.down = torch.nn.Linear(hidden, dim, bias=False)
        self.activation = activation

    def forward(self, x):
        return self.down(self.activation(self.gate(x), self.up(x)))


def trained(activation, compiled):
    """The losses of 20 steps of one and the same small task."""
    torch.manual_seed(seed)
    layer = FeedForward(16, 40, activation).to(device)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(seed)).to(device)
    losses = []
    for _ in range(20):
        loss = F.mse_loss(run(x), x.roll(1, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


theirs = trained(reference, compiled=False)
for compiled in (False, True):
    ours = trained(torch.ops.lab17.swiglu, compiled)
    print(f"compiled: {compiled!s:5}  the same losses as PyTorch's own: {torch.allclose(ours, theirs, atol=1e-4)}")
print("it learns:", bool(theirs[-1] < 0.9 * theirs[0]))

# %% [markdown]
# The backend `aot_eager` is the compiler without its last stage, the code generator. Both passes have been traced on fake tensors; the
# generator would leave a call of your operator as it is.
#
# ## From Python to C++
# What is left is the time a call takes on the host. An operator written in Python comes back to Python for each launch, which takes tens of
# microseconds; a small kernel is done by then. `torch.compile(mode="reduce-overhead")` records the launches once, in a *CUDA graph*, and
# replays them without asking Python. Where shapes change with every call, the launch itself can be C++, which takes a few microseconds. The
# package's operators have both. Until they are told otherwise they are launched from Python, by what is called `rawkernel` here:

# %%
import labkernels.torch_extension as extension

print("launched by:", extension.backend())
for name in ("matmul", "attention", "attention_backward"):
    print(getattr(torch.ops.labkernels, name).default._schema)

# %% [markdown]
# With a GPU and nvcc, `extension.load()` compiles the same `.cu` files into a shared library. Its C++ ends with what you wrote here, in other
# words: functions entered into the dispatcher's table. The table has a column, a *key*, for each stop of a call: `AutogradCUDA` is autograd's
# for tensors on a GPU, `CUDA` comes after it. The entries for autograd ask whether anybody wants gradients. If so they hand the call to a
# second operator, `matmul_autograd` say, whose formula is in Python. So are the schemas and the fake kernels.

# %%
from pathlib import Path

text = (Path(extension.__file__).parent / "csrc" / "operators.cpp").read_text()
print(text[text.index('extern "C"') :].strip())

# %% [markdown]
# ## Still wasted, still missing
# - **Kernels that follow each other.** The compiler fuses its own operations into one kernel, but yours is closed to it: nothing is fused
#   across its edges. A product before it, a sum after it: each pays for its trip through memory. So a fused kernel must be worth more
#   than what the compiler would have fused. For this activation alone it hardly is; at the end of a matmul, before its result is written,
#   it is.
# - **What is kept.** `gate` and `up` wait for the backward pass. A layer could keep *x* alone, and compute both again.
# - **Dtypes.** A bfloat16 tensor fails, loudly, in the launch. `torch.library` has a place for autocast too; or the kernel is a template.
# - **Shapes.** An `up` with fewer elements than `gate` fails silently: the kernel reads what lies behind it. The package's operators compare
#   shapes first, and say what is wrong.
#
# What would you add next? And a question: what happens if somebody asks for the gradient of a gradient? Try `torch.autograd.grad` with
# `create_graph=True`, twice. Which operator is PyTorch missing a formula for?
