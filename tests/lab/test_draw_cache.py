"""Pictures of the KV cache say what they show, and refuse what cannot be shown."""

import pytest

import labkernels as lk


def test_computed_keys_are_counted():
    alt = lk.draw.cached_tokens(3, 2).alt
    assert "12 in all" in alt and "5 in all" in alt    # 3 + 4 + 5, and 3 + 1 + 1


def test_shared_pages_are_named():
    assert "Pages 0, 5 are shared" in lk.draw.cache_pages().alt
    assert "No page is shared" in lk.draw.cache_pages({"one": [1, 2]}).alt
    with pytest.raises(ValueError, match="pages from 0 to 7"):
        lk.draw.cache_pages({"one": [8]})


def test_the_pieces_of_a_split_are_counted():
    assert "in 3 pieces" in lk.draw.split_keys(3).alt
    with pytest.raises(ValueError, match="blocks is 0"):
        lk.draw.split_keys(0)
