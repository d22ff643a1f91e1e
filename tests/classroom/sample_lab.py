# %% [markdown]
# # A sample lab
# Everything that a lab may hold, in the smallest form: parameters, a prediction, an exercise in Python, one in CUDA C++,
# and a picture.

# %% tags=["parameters"] again={"seed": 7, "count": 77}
seed = 0
count = 100

# %%
%load_ext labkernels
import matplotlib.pyplot as plt
import torch

import labkernels as lk

x = torch.randn(count, generator=torch.Generator().manual_seed(seed))

# %%
# A lab of the book keeps its answers in the package; this one is no lab of the book.
from labkernels.classroom.predictions import Prediction, load_predictions

load_predictions()["sample bytes"] = Prediction(
    lambda count: (4 * count, 4 * count), ("bytes read", "bytes written"), unit="bytes", hint="A float32 has 4 bytes."
)

# %% [markdown]
# **Predict.** A kernel doubles `count` float32 values. How many bytes does it read, and how many does it write?

# %% solution="predict-bytes"
bytes_read = bytes_written = None
### BEGIN SOLUTION
bytes_read = 4 * count
bytes_written = 4 * count
### END SOLUTION

# %% tests="predict-bytes" points=1
lk.check_prediction("sample bytes", bytes_read, bytes_written, count=count)

# %% [markdown]
# **Write** it in Python.

# %% solution="double-python"
def double(values):
    """Twice the values, which stay as they are."""
    ### BEGIN SOLUTION
    return values * 2
    ### END SOLUTION

# %% tests="double-python" points=2
before = x.clone()
torch.testing.assert_close(double(x), before + before)
assert torch.equal(x, before), "double must not write into its input"

# %% [markdown]
# **Write** it in CUDA C++. Don't forget the threads behind the end.

# %% solution="double-kernel"
%%cuda --name twice -D FACTOR=2
// y[i] = FACTOR * x[i]: it's one thread a value.
extern "C" __global__ void twice(const float* x, float* y, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    // BEGIN SOLUTION
    if (i < count) y[i] = FACTOR * x[i];
    // END SOLUTION
}

# %%
blocks = (count + 31) // 32

# %% tests="double-kernel" points=3
y = torch.full_like(x, float("nan"))
with lk.cuda.sanitizing():
    twice(blocks, 32, (x, y, count))
torch.testing.assert_close(y, x + x)

# %%
figure, axes = plt.subplots()
axes.plot(x, y, "o")
plt.show()
