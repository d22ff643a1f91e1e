"""The checker: right implementations pass; each kind of wrong one fails for its own reason, with the place named."""

import pickle

import pytest
import torch
from torch.utils._pytree import tree_map

from labkernels.errors import LabKernelsError
from labkernels.lab.check import check
from labkernels.lab.failure import REASONS, CheckFailed
from labkernels.operation import ops


def softmax(x):
    y = torch.empty_like(x)
    y.copy_(torch.softmax(x, dim=-1))
    return y


def failure_of(op, fn, **options) -> CheckFailed:
    with pytest.raises(CheckFailed) as raised:
        check(op, fn, quiet=True, **options)
    return raised.value


def test_a_right_softmax_passes_and_says_how_many_cases(capsys):
    report = check("softmax", softmax)
    shapes = len(ops["softmax"].check_shapes) + (len(ops["softmax"].large_shapes) if torch.cuda.is_available() else 0)
    assert report.passed == shapes * 2 * 2 and report.left_out == {}
    assert capsys.readouterr().out == f"softmax: {report.passed} cases passed\n"


def test_quiet_prints_nothing(capsys):
    check("sum", torch.sum, quiet=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("op", list(ops))
def test_zeros_fail(op):
    def zeros(*tensors, **options):
        return tree_map(torch.zeros_like, ops[op].native(*tensors, **options))

    assert failure_of(op, zeros).reason == "mismatch"


EARLIER = {"sum", "softmax", "matmul", "scaled_matmul", "attention", "attention_backward"}  # have more cases than the small operations


@pytest.mark.parametrize("op", list(ops))
def test_pytorchs_own_passes(op):
    narrow = op in {"rope", "qkv_rope_cache"}  # whose angles PyTorch rounds to float32, more than a float32 kernel may
    dtypes = ["bfloat16"] if narrow else ops[op].dtypes
    passed = check(op, ops[op].native, dtypes=dtypes if narrow else None, quiet=True).passed
    assert passed >= len(ops[op].check_shapes) * len(dtypes) and passed > (20 if op in EARLIER else 5)


def test_a_tensor_that_may_be_left_out_comes_by_keyword():
    seen = []

    def remember(a, b, **options):
        seen.append(options)
        return ops["matmul"].native(a, b, **options)

    def product(a, b):
        return torch.mm(a, b)

    check("matmul", remember, epilogue="bias+silu+residual", seeds=(0,), dtypes=["float32"], quiet=True, isolated=False)
    bias, residual = seen[0]["bias"], seen[0]["residual"]
    assert (bias.dim(), seen[0]["activation"], residual.dim()) == (1, "silu", 2)
    assert check("matmul", product, epilogue="none", seeds=(0,), quiet=True).passed > 20
    assert failure_of("matmul", product, epilogue="bias").reason == "exception"


def test_wrong_shape():
    failure = failure_of("softmax", lambda x: softmax(x)[None])
    assert failure.reason == "wrong_shape" and "shape (1, 1, 1)" in failure.headline and "want (1, 1)" in failure.headline


def test_nothing_returned():
    failure = failure_of("softmax", lambda x: None)
    assert failure.reason == "wrong_shape" and "is a `return` missing?" in str(failure)


def test_wrong_dtype():
    failure = failure_of("softmax", lambda x: softmax(x).float())
    assert failure.reason == "wrong_dtype"
    assert failure.headline == "wrong_dtype: got float32, want bfloat16"


def test_an_element_never_written_is_told_from_a_nan():
    def forgets_last_column(x):
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        y[:, : max(1, x.shape[1] - 1)] = torch.softmax(x, dim=-1)[:, : max(1, x.shape[1] - 1)]
        return y

    failure = failure_of("softmax", forgets_last_column)
    assert failure.reason == "not_written" and failure.where == "row 0, col 2"
    assert "got nothing, want 0." in failure.headline and "1 of 3 elements" in failure.detail


@pytest.mark.parametrize("allocate", [torch.empty_like, lambda x: x.new_empty(x.shape), lambda x: torch.empty_strided(x.shape, (x.shape[1], 1), dtype=x.dtype, device=x.device)])
def test_every_way_to_allocate_is_poisoned(allocate):
    assert failure_of("softmax", allocate).reason == "not_written"


def test_memory_is_not_poisoned_after_the_check():
    check("sum", torch.sum, quiet=True)
    with pytest.raises(CheckFailed):
        check("softmax", torch.empty_like, quiet=True)
    torch.full((1000,), 3.0).sum()
    assert not torch.empty(1000).isnan().all()


def test_nan_after_rows_of_minus_infinity():
    def online(x):
        maximum = torch.full_like(x[:, 0], -torch.inf)
        total = torch.zeros_like(maximum)
        for column in x.float().unbind(1):
            larger = torch.maximum(maximum, column)
            total = total * (maximum - larger).exp() + (column - larger).exp()
            maximum = larger
        return ((x - maximum[:, None]).exp() / total[:, None]).to(x.dtype)

    failure = failure_of("softmax", online, mask=["start", "scattered"])
    assert failure.reason == "not_finite"
    assert failure.where == "row 0, col 0" and "got nan, want" in failure.headline
    assert failure.hint == "Row 0 is all -inf up to col 5: what is exp(-inf - -inf)?"


def test_overflow_without_the_maximum():
    failure = failure_of("softmax", lambda x: (x.exp() / x.exp().sum(-1, keepdim=True)))
    assert failure.reason == "not_finite" and "subtract the maximum" in failure.hint


def test_a_sum_over_one_warp_only_is_recognised():
    def first_warp_only(x):
        weights = (x.float() - x.float().amax(-1, keepdim=True)).exp()
        return (weights / weights[:, :32].sum(-1, keepdim=True)).to(x.dtype)

    failure = failure_of("softmax", first_warp_only)
    assert failure.reason == "mismatch"
    assert "first 32 of 33 columns" in failure.hint


def test_a_mistake_in_the_last_partial_tile_is_located():
    def scales_tail(x):
        y = softmax(x)
        y[:, x.shape[1] // 32 * 32 :] *= 1.25 if x.shape[1] > 32 else 1
        return y

    failure = failure_of("softmax", scales_tail)
    assert failure.reason == "mismatch" and failure.where == "row 0, col 32"
    assert "col >= 32 of 33" in failure.hint


def test_nondeterminism():
    calls = []

    def drifts(x):
        calls.append(1)
        return softmax(x) * (1 + 1e-7 * len(calls)) if x.dtype == torch.float32 else softmax(x)

    failure = failure_of("softmax", drifts)
    assert failure.reason == "nondeterministic" and "the first time" in failure.headline


def test_a_result_wrong_in_another_way_each_time_is_a_race_not_a_mismatch():
    assert failure_of("softmax", lambda x: torch.rand(x.shape).to(x.device, x.dtype)).reason == "nondeterministic"


def test_modified_input():
    failure = failure_of("softmax", lambda x: softmax(x.sub_(x.amax(-1, keepdim=True))))
    assert failure.reason == "input_modified" and failure.where == "x"


def test_exceptions_name_the_readers_line():
    def broken(x):
        return x / undefined_name

    failure = failure_of("softmax", broken)
    assert failure.reason == "exception" and "NameError" in failure.got
    assert failure.where.startswith("broken, line ") and failure.where.endswith("return x / undefined_name")
    assert isinstance(failure.__cause__, NameError)


def test_interrupting_is_not_a_failure():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("softmax", interrupted, quiet=True)


def test_low_precision_inside_is_refused_in_bfloat16():
    def rounded_weights(x):
        weights = (x - x.amax(-1, keepdim=True)).exp()
        total = torch.zeros_like(weights[:, 0])
        for column in weights.unbind(1):
            total = total + column  # in the precision of x
        return weights / total[:, None]

    failure = failure_of("softmax", rounded_weights)
    assert failure.reason == "mismatch" and "bfloat16" in failure.case


def test_cases_can_be_narrowed():
    everything = check("softmax", softmax, quiet=True).passed
    only_float = check("softmax", softmax, dtypes=["float32"], seeds=[7], quiet=True)
    assert only_float.passed == everything // 4
    assert check("softmax", softmax, mask="none", layout="contiguous", quiet=True).passed < everything
    with pytest.raises(TypeError, match="softmax has no size or option 'columns'; it has rows, cols"):
        check("softmax", softmax, columns=3)
    with pytest.raises(ValueError, match="no case of softmax is left"):
        check("softmax", softmax, cols=12345)


def test_an_option_at_its_default_need_not_be_taken():
    def plain(q, k, v):
        return ops["attention"].reference(q.double(), k.double(), v.double()).to(q.dtype)

    assert check("attention", plain, causal=False, scale=None, quiet=True).passed > 10
    failure = failure_of("attention", plain)
    assert failure.reason == "exception" and "causal" in failure.got


def test_tensors_may_have_other_names():
    assert check("sum", lambda numbers: numbers.sum(), quiet=True).passed > 10
    assert check("sum", lambda numbers: numbers.sum()[None], quiet=True).passed > 10


def test_failures_print_case_map_and_hint():
    def wrong_half(x):
        y = softmax(x)
        y[y.shape[0] // 2 :, y.shape[1] // 2 :] *= 1.5
        return y

    failure = failure_of("softmax", wrong_half, rows=40)
    lines = str(failure).splitlines()
    assert lines[0].startswith("mismatch at row 20, col 20: got ")
    assert "rows=40, cols=40, mask=causal; float32, seed 0, " in str(failure)
    assert "one mark for 5 rows x 3 cols: . right, X wrong" in str(failure)
    rows = [line.strip() for line in lines[-8:]]
    assert rows == ["." * 14] * 4 + ["......XXX.....", "......XXXX....", "......XXXXXX..", "......XXXXXXXX"]
    html = failure._repr_html_()
    assert "<table" in html and "mismatch at row 20, col 20" in html


def test_failures_survive_pickling():
    failure = failure_of("softmax", lambda x: softmax(x) * 1.01)
    copy = pickle.loads(pickle.dumps(failure))
    assert str(copy) == str(failure) and copy.reason == failure.reason and copy.error_map == failure.error_map
    assert isinstance(copy, LabKernelsError)


def test_the_owner_of_the_element_is_named_when_known():
    def wrong(x):
        return softmax(x) * 1.01

    wrong.owner = lambda index, x: f"block ({index[0]}, 0, 0), thread ({index[1] % 128}, 0, 0)"
    assert "owner   block (0, 0, 0), thread (0, 0, 0)" in str(failure_of("softmax", wrong))


def test_reasons_are_a_closed_list():
    with pytest.raises(ValueError, match="'oops' is not a reason"):
        CheckFailed("oops")
    assert len(REASONS) == 9
