"""Pictures of the engine say what they show, and refuse what cannot be shown."""

import pandas
import pytest

import labkernels as lk


def test_a_layer_has_five_fused_kernels():
    picture = lk.draw.layer_launches()
    assert "below them the 5 kernels of v3" in picture.alt and len(picture.figure.axes[0].patches) == 30 + 5


def test_timelines_are_told_by_their_ends():
    alt = lk.draw.token_timeline(4, launch=3.0, kernel=1.0, gap=0.5).alt
    assert "after 13 times" in alt and "small gaps; 8.5." in alt and "runs; 7." in alt    # 4 * 3 + 1, 3 + 4 + 3 * 0.5, 3 + 4
    with pytest.raises(ValueError, match="launch 0.5"):
        lk.draw.token_timeline(launch=0.5)


def test_the_rate_is_the_bandwidth_over_all_bytes():
    alt = lk.draw.token_bytes({"small": {"layers": 1.5e9, "head": 0.4e9, "keys and values": 0.1e9}}, 4000).alt
    assert "small: layers 1.50, head 0.40, keys and values 0.10, 2,000 tokens/s" in alt


def test_a_batch_is_told_by_request_and_by_pages():
    picture = lk.draw.batch_timeline({"first": "pddd ", "second": "wpxwp"}, [1, 2, 3, 3, 2], 3)
    assert "first: reads its prompt in 1, gets a token in 3; second: waits in 2, reads its prompt in 2, gave its pages back in 1" in picture.alt
    assert "at most 3 of 3" in picture.alt
    with pytest.raises(ValueError, match="one is 'pq'"):
        lk.draw.batch_timeline({"one": "pq"}, [1, 1], 2)
    with pytest.raises(ValueError, match="each of 3 passes"):
        lk.draw.batch_timeline({"one": "pd"}, [1, 1, 1], 2)


def test_the_ladder_marks_the_limit_of_what_is_known():
    frame = pandas.DataFrame(
        {"runner": ["cached", "early", "compiled"], "weights": ["bf16", "int4", "bf16"], "head": ["bf16", "int8", "bf16"], "kind": ["ours", "ours", "peer"],
         "tokens_per_s": [100.0, 1500.0, None], "share_of_limit": [0.05, 0.75, None]}
    )    # fmt: skip
    picture = lk.draw.engine_ladder(frame)
    assert picture.alt == "Tokens a second: cached, bf16 100; early, int4, head int8 1,500."
    assert [float(line.get_xdata()[0]) for line in picture.figure.axes[0].lines] == [2000.0, 2000.0]
