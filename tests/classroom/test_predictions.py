"""Predictions: right ones pass, wrong ones are told how far off they are and never the answer, missing ones are asked for."""
import pytest
import torch

from labkernels.classroom.predictions import Prediction, check_prediction, judge, load_predictions
from labkernels.errors import ArgumentError
from labkernels.lab.failure import CheckFailed

BYTES = Prediction(
    lambda cols: (12 * cols, 8 * cols), ("bytes read by three passes", "bytes read by one"), unit="bytes", hint="A float32 has 4 bytes."
)
RATIO = Prediction((7.5,), ("the speedup",), hint="Divide the bytes.", tolerance=0.1)
WINNER = Prediction(("one pass",), ("who wins",), hint="Count the trips.")


def refused(prediction, *given, **sizes) -> CheckFailed:
    with pytest.raises(CheckFailed) as caught:
        judge("made up", prediction, given, sizes)
    assert prediction.hint in str(caught.value)
    return caught.value


def test_a_right_prediction_is_confirmed_in_one_line(capsys):
    judge("softmax bytes", BYTES, (1200, 800), {"cols": 100})
    assert capsys.readouterr().out == "softmax bytes: right. Bytes read by three passes: 1,200 bytes, bytes read by one: 800 bytes.\n"


def test_a_large_whole_number_is_shown_in_full(capsys):
    judge("bytes", Prediction((34_359_738_368,), ("the scores",), hint="Count."), (34_359_738_368.0,), {})
    assert capsys.readouterr().out == "bytes: right. The scores: 34,359,738,368.\n"


@pytest.mark.parametrize("given, far_off", [(4800, "4 times smaller"), (300, "4 times larger"), (0.25, "4,800 times larger"), (1224, "2% smaller"), (1176, "2% larger"), (1201, "a slightly different number")])
def test_a_wrong_prediction_is_told_how_far_off_it_is_but_not_the_answer(given, far_off):
    error = refused(BYTES, given, 800, cols=100)
    assert error.reason == "mismatch"
    assert "bytes read by three passes" in str(error) and far_off in str(error)
    assert "1200" not in str(error) and "1,200" not in str(error)


def test_the_answer_follows_the_sizes_of_the_lab():
    judge("made up", BYTES, (12 * 77, 8 * 77), {"cols": 77})
    assert refused(BYTES, 1200, 800, cols=77).reason == "mismatch"


@pytest.mark.parametrize("missing", [None, ...])
def test_a_prediction_not_made_yet_is_asked_for(missing):
    error = refused(BYTES, 1200, missing, cols=100)
    assert error.reason == "not_written" and "bytes read by one" in str(error)


def test_the_hint_waits_for_the_first_attempt():
    with pytest.raises(CheckFailed) as caught:
        judge("made up", BYTES, (None, None), {"cols": 100})
    assert caught.value.hint is None


def test_a_tolerance_is_relative():
    judge("made up", RATIO, (8.2,), {})
    assert refused(RATIO, 8.3).reason == "mismatch"
    assert refused(RATIO, float("nan")).reason == refused(RATIO, -7.5).reason == refused(RATIO, "a lot").reason == "mismatch"


def test_numbers_may_come_as_tensors_and_words_in_any_case():
    judge("made up", RATIO, (torch.tensor(7.5),), {})
    judge("made up", WINNER, (" One pass",), {})
    assert refused(WINNER, "three passes").reason == "mismatch"


def test_a_wrong_count_or_name_is_the_callers_mistake():
    with pytest.raises(ArgumentError, match="1 answers, but it asks for 2"):
        judge("made up", BYTES, (1,), {"cols": 1})
    with pytest.raises(ArgumentError, match="no prediction is called 'nonsense'"):
        check_prediction("nonsense", 1)


def test_every_prediction_of_the_labs_asks_for_as_many_answers_as_it_knows():
    for name, prediction in load_predictions().items():
        assert prediction.hint and prediction.asks, name
        if not callable(prediction.answer):
            assert len(prediction.answer) == len(prediction.asks), name
