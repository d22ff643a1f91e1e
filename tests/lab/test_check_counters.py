"""Grading on counters: right and frugal passes, wrong or wasteful fails and is told where."""

import pytest
import torch

import labkernels as lk
from labkernels.cuda import Kernel
from labkernels.errors import ArgumentError

SOURCE = """
__global__ void naive(const float* x, float* out, int rows, int cols) {
    int col = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
    out[col * rows + row] = x[row * cols + col];
}
template <int WIDTH> __device__ void through_tile(const float* x, float* out, int rows, int cols) {
    __shared__ float tile[32][WIDTH];
    int col = blockIdx.x * 32, row = blockIdx.y * 32;
    tile[threadIdx.y][threadIdx.x] = x[(row + threadIdx.y) * cols + col + threadIdx.x];
    __syncthreads();
    out[(col + threadIdx.y) * rows + row + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
__global__ void tile(const float* x, float* out, int rows, int cols) { through_tile<32>(x, out, rows, cols); }
__global__ void padded(const float* x, float* out, int rows, int cols) { through_tile<33>(x, out, rows, cols); }
"""
CASE = {"x": (64, 96)}
BYTES = 2 * 64 * 96 * 4


def with_kernel(name, launches=1):
    kernel = Kernel(SOURCE, name, filename="In[3]")

    def my_transpose(x):
        rows, cols = x.shape
        out = torch.empty(cols, rows)
        for _ in range(launches):
            kernel((cols // 32, rows // 32), (32, 32), (x, out, rows, cols))
        return out

    return my_transpose


def transposed(x):
    return x.t()


def failure_of(fn, **limits):
    with pytest.raises(lk.CheckFailed) as raised:
        lk.check_counters(transposed, fn, CASE, quiet=True, **limits)
    return raised.value


def test_a_right_and_frugal_kernel_passes_and_one_line_says_so(capsys):
    counted = lk.check_counters(transposed, with_kernel("padded"), CASE, bytes_at_most=1.05, bank_conflicts=0)
    assert counted.bytes_moved == BYTES
    assert capsys.readouterr().out == "my_transpose: right, and moves 1 times the tensors' bytes (at most 1.05), 0 bank conflicts (at most 0)\n"


def test_scattered_stores_are_found_with_their_line():
    failure = failure_of(with_kernel("naive"), bytes_at_most=1.05)
    assert failure.reason == "mismatch" and failure.where.endswith("line 4")
    assert "4.5 times" in failure.got and failure.want == "at most 1.05 times"
    assert failure.detail.startswith("out[col * rows + row] = x[row * cols + col];\neach store asks for 128 bytes and moves 32 sectors")
    assert "should store neighbouring" in failure.hint


def test_bytes_that_move_twice_are_found_though_each_request_is_coalesced():
    failure = failure_of(with_kernel("padded", launches=2), bytes_at_most=1.05)
    assert "2 times the tensors' own" in failure.got and "more often than once" in failure.hint


def test_bank_conflicts_are_found_with_their_line_and_the_distance_of_lanes():
    failure = failure_of(with_kernel("tile"), bytes_at_most=1.05, bank_conflicts=0)
    assert failure.where.endswith("bank conflicts, line 11") and failure.want == "at most 0"
    assert failure.got == f"{64 * 96 // 32 * 31:,}" and "32 words apart there, and so all lanes meet in the same bank" in failure.hint


@pytest.mark.parametrize(("counter", "fewest"), [("global_load_requests", 192), ("global_store_sectors_per_request", 4.0), ("barriers", 192)])
def test_every_counter_can_be_limited(counter, fewest):
    lk.check_counters(transposed, with_kernel("padded"), CASE, quiet=True, **{counter: fewest})
    assert failure_of(with_kernel("padded"), **{counter: fewest - 1}).where.startswith(counter.replace("_", " "))


def test_counters_of_all_launches_are_added_up():
    assert failure_of(with_kernel("padded", launches=3), global_load_requests=500).got == "576"


def test_garbage_that_moves_few_bytes_fails_as_garbage():
    def my_transpose(x):
        return with_kernel("padded")(x) + 1

    assert failure_of(my_transpose, bytes_at_most=1.05).error_map is not None


def test_work_done_by_somebody_else_is_noticed():
    assert failure_of(lambda x: x.t().contiguous(), bytes_at_most=1.05).where == "launches"

    def my_transpose(x):
        with_kernel("padded")(x[:32, :32].contiguous())
        return x.t().contiguous()

    assert "at least 49.2 kB" in failure_of(my_transpose, bytes_at_most=1.05).want


def test_an_exception_in_the_function_is_a_failed_check():
    def my_transpose(x):
        return x.no_such_method()

    assert failure_of(my_transpose).reason == "exception"


def test_an_operation_is_judged_by_its_name():
    with pytest.raises(lk.CheckFailed, match="0 times the tensors' own|at most 0"):
        lk.check_counters("sum", "v1_naive", {"n": 4096}, global_atomic_requests=0)
    lk.check_counters("sum", "v3_warp", {"n": 4096}, quiet=True, bytes_at_most=1.05, bank_conflicts=0)


def test_a_counter_that_does_not_exist_is_named():
    with pytest.raises(ArgumentError, match="no counter 'bank_conflict'"):
        lk.check_counters(transposed, with_kernel("padded"), CASE, bank_conflict=0)


def test_the_hint_speaks_of_the_request_that_conflicts_and_not_of_a_broadcast_in_the_same_line():
    kernel = Kernel(
        """__global__ void f(const float* x, float* out, int n) {
            __shared__ float word[1024];
            for (int i = threadIdx.x; i < 1024; i += 32) word[i] = x[i % n];
            __syncthreads();
            out[threadIdx.x] = word[0] + word[16 * threadIdx.x] - word[16 * threadIdx.x + 1] ;
        }""",
        "f",
    )

    def my_sums(x):
        out = torch.empty(32)
        kernel(1, 32, (x, out, 1024))
        return out

    with pytest.raises(lk.CheckFailed) as raised:
        lk.check_counters(lambda x: x[0] + x[:512:16] - x[1:512:16], my_sums, {"x": (1024,)}, quiet=True, bank_conflicts=0)
    assert "16 words apart there, and so all lanes meet in 2 of the 32 banks" in raised.value.hint


def test_profiling_counts_each_launch_as_it_runs():
    from labkernels.cuda import profiling

    x = torch.randn(64, 96)
    with profiling() as profiles:
        result = with_kernel("tile", launches=2)(x)
    assert torch.equal(result, x.t()) and [p.bytes_moved for p in profiles] == [BYTES, BYTES]
