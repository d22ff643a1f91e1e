"""Pictures of attention's backward pass show the right numbers."""

import pytest
import torch

import labkernels as lk


def test_the_gradient_of_a_softmax_is_autograds():
    weights, gradients = (0.5, 0.125, 0.375), (1.0, -3.0, 2.0)
    scores = torch.tensor(weights).log().requires_grad_()
    (wanted,) = torch.autograd.grad(scores.softmax(0), scores, torch.tensor(gradients))
    picture = lk.draw.softmax_gradient(weights, gradients)
    left, right = picture.figure.axes
    assert [bar.get_height() for bar in right.patches] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert "δ = 0.875" in [text.get_text() for text in left.texts]


@pytest.mark.parametrize("weights, gradients", [((0.5, 0.4), (1.0, 2.0)), ((1.5, -0.5), (1.0, 2.0)), ((0.5, 0.5), (1.0,))])
def test_the_gradient_of_a_softmax_refuses_what_is_no_softmax(weights, gradients):
    with pytest.raises(ValueError, match="softmax_gradient"):
        lk.draw.softmax_gradient(weights, gradients)


def test_a_block_of_keys_adds_to_every_block_of_dq_and_a_block_of_queries_owns_its_own():
    left, right = lk.draw.gradient_walks(query_blocks=3, key_blocks=4, key=3, query=0).figure.axes
    texts = [[text.get_text() for text in axes.texts if text.get_text()] for axes in (left, right)]
    assert texts[0].count("+=") == 3 and texts[0].count("dK") == texts[0].count("dV") == 1
    assert texts[1].count("+=") == 0 and texts[1].count("dK") == 0 and texts[1].count("dQ") == 2  # its own block, and the name above
    with pytest.raises(ValueError, match="no block 4 of keys"):
        lk.draw.gradient_walks(query_blocks=3, key_blocks=4, key=4)


def test_the_dataflow_names_all_matrices_and_dashes_those_of_n_by_n():
    picture = lk.draw.attention_gradients()
    (axes,) = picture.figure.axes
    names = [text.get_text() for text in axes.texts]
    assert all(names.count(prefix + name) == 1 for prefix in ("", "d") for name in "QKVOSP")
    assert sum(patch.get_linestyle() == "--" for patch in axes.patches) == 4 and "never stored" in picture.alt
