"""Pictures of attention and flash attention show the right numbers, whatever sizes they are asked for."""

import math

import pytest
import torch

import labkernels as lk
from labkernels.attention.reference import visible
from labkernels.lab.draw.flash import causal_tile_counts


def bars(axes):
    """The filled bars of one frame: (x, bottom, height) by key, then by name."""
    return [[(bar.get_x(), bar.get_y(), bar.get_height()) for bar in container] for container in axes.containers]


def test_accumulator_ends_at_the_sum_and_output_of_a_softmax():
    scores = torch.tensor([0.5, 2.0, -1.0, 3.0, 2.5])
    values = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    picture = lk.draw.accumulator(scores.tolist(), values.tolist())
    last = picture.figure.axes[-1]
    top = bars(last)[4]
    total, *output = [bottom + height for _, bottom, height in top]
    torch.testing.assert_close(torch.tensor(output).float() / total, torch.softmax(scores, 0) @ values)


def test_accumulator_outlines_what_a_larger_score_shrinks():
    picture = lk.draw.accumulator([1.0, 2.0, 0.0], [[1.0], [1.0], [1.0]])
    first, second, third = picture.figure.axes
    assert "× 0.37" in second.get_title("left") and "max stays" in third.get_title("left")
    assert [len(axes.containers) for axes in (first, second, third)] == [1, 3, 3]  # a container for each key, one for the outline
    _, _, height = bars(second)[0][0]
    assert math.isclose(height, math.exp(-1), rel_tol=1e-6)


def test_accumulator_refuses_values_that_cannot_be_stacked():
    with pytest.raises(ValueError, match="not negative"):
        lk.draw.accumulator([1.0], [[-1.0]])


@pytest.mark.parametrize("seq, block, tile", [(24, 8, 4), (64, 16, 16), (50, 16, 8), (33, 8, 32), (7, 64, 16)])
def test_causal_tiles_count_what_a_loop_over_the_mask_counts(seq, block, tile):
    mask = visible(seq, seq, "cpu")
    parts = [mask[i : i + block, j : j + tile] for i in range(0, seq, block) for j in range(0, seq, tile)]
    seen = [part for part in parts if part.any()]
    assert causal_tile_counts(seq, block, tile) == (len(seen), len(parts), sum(int((~part).sum()) for part in seen))
    image = lk.draw.causal_tiles(seq, block, tile).figure.axes[0].images[0].get_array()
    assert int((image == 1).sum()) == int(mask.sum()) and int((image == 2).sum()) == causal_tile_counts(seq, block, tile)[2]


def test_masks_are_those_of_the_reference():
    causal, longer, padded = (axes.images[0].get_array() for axes in lk.draw.attention_masks(seq=4, kv=9, length=6).figure.axes)
    assert (torch.tensor(causal) == visible(4, 4, "cpu")).all()
    assert (torch.tensor(longer) == visible(4, 9, "cpu")).all()
    assert padded[:, :6].all() and not padded[:, 6:].any()


def test_weights_are_drawn_head_by_head():
    weights = torch.softmax(torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1)), dim=-1)
    panels = lk.draw.attention_weights(weights, ["a", "b", "c"]).figure.axes
    assert [axes.get_title("left") for axes in panels] == ["a", "b", "c"]
    for axes, head in zip(panels, weights):
        torch.testing.assert_close(torch.tensor(axes.images[0].get_array().data), head)


def test_memory_of_the_scores_quadruples_and_the_rest_doubles():
    picture = lk.draw.attention_memory(heads=2, head_dim=8, lengths=(64, 128, 256))
    scores, rest = (line.get_ydata() for line in picture.figure.axes[0].lines[:2])
    assert list(scores) == [4 * 2 * n * n for n in (64, 128, 256)]
    assert list(rest) == [4 * 2 * 8 * n * 4 for n in (64, 128, 256)]
    assert "flash attention" in "".join(text.get_text() for text in lk.draw.attention_memory(flash=True).figure.axes[0].texts)


def test_traffic_of_the_scores_is_four_trips():
    assert "4 arrows of 8 kB, 32 kB in all" in lk.draw.score_traffic(seq=10, heads=20).alt


def test_a_thread_of_the_scores_lies_in_its_block():
    assert "lies in block (3, 2)" in lk.draw.score_threads(seq=40, kv=200, query=17, key=100).alt
    with pytest.raises(ValueError, match="outside"):
        lk.draw.score_threads(seq=10, kv=10, query=10, key=0)


def test_grouped_heads_need_equal_groups():
    assert "0 to 2 are joined" in lk.draw.grouped_heads(6, 2).alt
    with pytest.raises(ValueError, match="evenly"):
        lk.draw.grouped_heads(8, 3)


def test_tiles_behind_the_current_one_are_gone():
    texts = [text.get_text() for text in lk.draw.attention_tiles(query_blocks=3, key_tiles=5, block=2, tile=4).figure.axes[0].texts]
    assert texts.count("gone") == 4
    with pytest.raises(ValueError, match="no tile 5"):
        lk.draw.attention_tiles(key_tiles=5, tile=5)


def test_every_picture_can_be_drawn_as_it_comes():
    names = ["attention_products", "attention_masks", "score_threads", "grouped_heads", "attention_memory", "score_traffic"]
    names += ["accumulator", "attention_tiles", "tile_barriers", "causal_tiles"]
    for name in names:
        assert getattr(lk.draw, name)().png().startswith(b"\x89PNG")
