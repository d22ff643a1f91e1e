"""Numba's simulator made strict: indices inside their arrays, operations of a warp, and no launch without an end."""

import threading
import time

import numpy as np
import pytest
import torch
from numba import float32, int32

from labkernels.cuda.numba_cuda import SIMULATED, as_numba, cuda

pytestmark = pytest.mark.skipif(not SIMULATED, reason="the simulator runs where there is no GPU")
FULL = 0xFFFFFFFF


def launch(kernel, grid, block, *tensors):
    kernel[grid, block](*(as_numba(t) if isinstance(t, torch.Tensor) else t for t in tensors))


def lanes(kernel, block=32, dtype=torch.int64):
    out = torch.full((block,), -1, dtype=dtype)
    launch(kernel, 1, block, out)
    return out.tolist()


# ---- indices ------------------------------------------------------------------------------------------------------------


@cuda.jit
def left_neighbour(x, y):
    i = cuda.grid(1)
    if i < x.size:
        y[i] = x[i - 1]


@cuda.jit
def no_guard(x, y):
    i = cuda.grid(1)
    y[i] = x[min(i, 3)]


@cuda.jit
def second_axis(x):
    i = cuda.grid(1)
    x[i, x.shape[1]] = 1


@cuda.jit
def in_shared(x):
    tile = cuda.shared.array((4, 5), float32)
    tile[cuda.threadIdx.x, cuda.threadIdx.y - 1] = x[0]


@cuda.jit
def in_local(x):
    mine = cuda.local.array(3, int32)
    mine[3] = x[0]


@cuda.jit
def too_many_axes(x):
    x[0, 0] = 1


@cuda.jit
def atomic(x):
    cuda.atomic.add(x, -1, 1)


@cuda.jit
def row_of_a_matrix(x):
    row = x[1]
    row[cuda.threadIdx.x - 1] = 1


@pytest.mark.parametrize(
    "kernel, grid, block, shapes, message",
    [
        (left_neighbour, 2, 4, [8, 8], r"thread 0 of block 0: x\[-1\] is out of bounds: indices are 0 to 7"),
        (no_guard, 3, 4, [9, 9], r"thread 1 of block 2: y\[9\] is out of bounds: indices are 0 to 8"),
        (second_axis, 1, 1, [(2, 3)], r"thread 0 of block 0: x\[0, 3\] is out of bounds: indices along axis 1 are 0 to 2"),
        (in_shared, (1, 2), (1, 1), [1], r"thread 0 of block 0: tile\[0, -1\] is out of bounds: indices along axis 1 are 0 to 4"),
        (in_local, 1, 1, [1], r"mine\[3\] is out of bounds: indices are 0 to 2"),
        (too_many_axes, 1, 1, [4], r"x\[0, 0\]: x has 1 axes, the index 2"),
        (atomic, 1, 1, [4], r"x\[-1\] is out of bounds: indices are 0 to 3"),
        (row_of_a_matrix, 1, 1, [(2, 3)], r"x\[-1\] is out of bounds: indices are 0 to 2"),
    ],
)
def test_an_index_outside_names_array_index_thread_and_block(kernel, grid, block, shapes, message):
    with pytest.raises(IndexError, match=message):
        launch(kernel, grid, block, *(torch.rand(shape) for shape in shapes))


def test_a_thread_of_two_axes_is_named_by_both():
    @cuda.jit
    def corner(x):
        i, j = cuda.grid(2)
        if i == 1 and j == 3:
            x[4] = 1

    with pytest.raises(IndexError, match=r"thread \(1, 1\) of block \(0, 1\): x\[4\]"):
        launch(corner, (2, 2), (2, 2), torch.rand(4))


def test_what_lies_inside_is_read_and_written_as_before():
    @cuda.jit
    def use(x, y):
        i = cuda.threadIdx.x
        tile = cuda.shared.array(4, float32)
        other = cuda.shared.array(shape=(4, 2), dtype=float32)
        tile[i] = x[i, 0]
        other[i, 1] = x[i, 1]
        cuda.syncthreads()
        part = x[1:3]
        y[i] = tile[3 - i] + 10 * other[3 - i, 1] + 100 * part[1, 0] + 1000 * x.shape[0] + 10000 * len(x[i]) + x.T[1, i] * 0
        y[i] += 1

    x, y = torch.arange(8.0).reshape(4, 2), torch.zeros(4)
    launch(use, 1, 4, x, y)
    assert y.tolist() == [x[3 - i, 0] + 10 * x[3 - i, 1] + 100 * x[2, 0] + 4000 + 20000 + 1 for i in range(4)]


def test_shared_and_local_arrays_begin_unwritten_in_every_block():
    @cuda.jit
    def unwritten(x):
        tile = cuda.shared.array(2, float32)
        mine = cuda.local.array(2, int32)
        b = cuda.blockIdx.x
        x[b, 0], x[b, 1] = tile[0], mine[1]
        tile[0] = mine[1] = 7

    x = torch.zeros(2, 2, dtype=torch.float64)
    launch(unwritten, 2, 1, x)
    assert x[:, 0].isnan().all() and (x[:, 1] == -(2**31)).all()


# ---- warps --------------------------------------------------------------------------------------------------------------


def test_shuffles_move_values_between_lanes():
    @cuda.jit
    def shuffle(out):
        i = cuda.threadIdx.x
        out[i, 0] = cuda.shfl_sync(FULL, 10 * i, 5)
        out[i, 1] = cuda.shfl_up_sync(FULL, 10 * i, 3)
        out[i, 2] = cuda.shfl_down_sync(FULL, 10 * i, 3)
        out[i, 3] = cuda.shfl_xor_sync(FULL, 10 * i, 1)

    out = torch.zeros(64, 4, dtype=torch.int64)
    launch(shuffle, 1, 64, out)
    for i in range(64):
        warp, lane = i // 32 * 32, i % 32
        want = [warp + 5, i - 3 if lane >= 3 else i, i + 3 if lane < 29 else i, i ^ 1]
        assert out[i].tolist() == [10 * w for w in want]


def test_a_warp_sums_with_five_shuffles():
    @cuda.jit
    def warp_sum(x, out):
        value = x[cuda.threadIdx.x]
        for distance in (16, 8, 4, 2, 1):
            value += cuda.shfl_xor_sync(FULL, value, distance)
        out[cuda.threadIdx.x] = value

    x, out = torch.randn(32), torch.zeros(32)
    launch(warp_sum, 1, 32, x, out)
    torch.testing.assert_close(out, x.sum().expand(32), atol=1e-5, rtol=1e-5)
    assert len(out.unique()) == 1


def test_votes_and_matches():
    @cuda.jit
    def vote(out):
        i = cuda.threadIdx.x
        out[i, 0] = cuda.ballot_sync(FULL, i % 3 == 0)
        out[i, 1] = cuda.any_sync(FULL, i == 40) + 2 * cuda.all_sync(FULL, i < 32) + 4 * cuda.eq_sync(FULL, i > 16)
        out[i, 2] = cuda.match_any_sync(FULL, i % 2)
        out[i, 3] = cuda.match_all_sync(FULL, i // 32)[0] * cuda.match_all_sync(FULL, i)[1] + cuda.lanemask_lt()

    out = torch.zeros(64, 4, dtype=torch.int64)
    launch(vote, 1, 64, out)
    for i in range(64):
        warp = range(i // 32 * 32, i // 32 * 32 + 32)
        assert out[i, 0] == sum(1 << j % 32 for j in warp if j % 3 == 0)
        assert out[i, 1] == (2 if i < 32 else 1 + 4)
        assert out[i, 2] == (0x55555555 if i % 2 == 0 else 0xAAAAAAAA)
        assert out[i, 3] == (1 << i % 32) - 1


def test_a_mask_names_the_lanes_that_take_part_and_the_last_warp_may_be_short():
    @cuda.jit
    def half(out):
        i = cuda.threadIdx.x
        if i < 16:
            out[i] = cuda.shfl_down_sync(0xFFFF, i, 4)
        elif i >= 32:
            out[i] = cuda.ballot_sync(FULL, True)
        cuda.syncwarp()

    found = lanes(half, 40)
    assert found[:12] == list(range(4, 16)) and found[32:] == [0xFF] * 8
    assert all(value < 0 for value in found[12:16]), "lanes 16 to 19 take no part: what is read from them shows"


def test_syncwarp_orders_the_lanes_of_a_warp():
    @cuda.jit
    def reverse(out):
        tile = cuda.shared.array(32, int32)
        i = cuda.threadIdx.x
        tile[i] = i
        cuda.syncwarp()
        out[i] = tile[31 - i]

    assert lanes(reverse) == list(range(31, -1, -1))


# ---- waiting ------------------------------------------------------------------------------------------------------------


def test_counting_barriers_and_threads_that_left_early():
    @cuda.jit
    def count(out):
        i = cuda.threadIdx.x
        if i >= 6:
            return
        cuda.syncthreads()
        out[i] = cuda.syncthreads_count(i < 2)

    assert lanes(count, 8) == [2] * 6 + [-1] * 2


@cuda.jit
def barrier_and_shuffle(out):
    if cuda.threadIdx.x < 4:
        cuda.syncthreads()
    else:
        cuda.shfl_sync(FULL, 1, 0)


@cuda.jit
def not_in_its_mask(out):
    if cuda.threadIdx.x < 2:
        cuda.syncwarp(0b1)


@pytest.mark.parametrize(
    "kernel, message",
    [
        (barrier_and_shuffle, "wait for each other for ever: thread 0 of block 0 in syncthreads; thread 4 of block 0 in shfl_sync, mask 0xffffffff"),
        (not_in_its_mask, "thread 1 of block 0: syncwarp: lane 1 calls it, and is not in its mask 0x00000001"),
    ],
)
def test_waiting_that_cannot_end_is_an_error(kernel, message):
    with pytest.raises(RuntimeError, match=message):
        launch(kernel, 1, 8, torch.zeros(1))


def test_an_error_ends_threads_that_would_loop_for_ever_or_wait():
    @cuda.jit
    def mixed(x):
        i = cuda.threadIdx.x
        if i == 0:
            while x[0] == 0:
                pass
        elif i == 1:
            cuda.syncthreads()
        else:
            x[-1] = 1

    before = threading.active_count()
    with pytest.raises(IndexError, match=r"thread 2 of block 0: x\[-1\]"):
        launch(mixed, 1, 3, torch.zeros(4))
    deadline = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_exceptions_of_every_kind_keep_their_kind_and_say_where():
    @cuda.jit
    def divide(x):
        x[0] = 1 // (cuda.threadIdx.x - 1)

    with pytest.raises(ZeroDivisionError, match="thread 1 of block 0: "):
        launch(divide, 1, 2, torch.zeros(1))


def test_numpy_arrays_work_too():
    x = np.arange(4, dtype=np.float32)
    left_neighbour_of_some = cuda.jit(lambda x: None)
    left_neighbour_of_some[1, 1](x)
    with pytest.raises(IndexError, match=r"x\[-1\]"):
        left_neighbour[1, 4](x, x)
