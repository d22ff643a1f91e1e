"""Pictures of the whole model say what they show, and refuse what cannot be shown."""

import pytest

import labkernels as lk


def test_heads_are_counted_and_groups_told():
    alt = lk.draw.stacked_projection(6, 2).alt
    assert "A row of 10 boxes" in alt and "the 3 heads of queries that share it" in alt
    with pytest.raises(ValueError, match="heads is 4, kv_heads is 3"):
        lk.draw.stacked_projection(4, 3)


def test_shares_are_those_of_the_presets():
    alt = lk.draw.parameter_budget(["llama-3.2-1b"]).alt
    assert "llama-3.2-1b, 1.24 B: embedding 21%, attention 14%, ffn 65%, head 0%" in alt


def test_documents_are_counted():
    assert "12 tokens from 3 documents of 3, 5, 4" in lk.draw.packed_documents().alt
    with pytest.raises(ValueError, match="none of them empty"):
        lk.draw.packed_documents([2, 0])


def test_the_block_has_two_branches():
    assert "RMSNorm and attention" in lk.draw.decoder_block().alt
