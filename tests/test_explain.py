"""lk.explain: variant by variant, chosen or refused because of what, and the one it names is the one that runs."""

import pytest
import torch

import labkernels as lk
from labkernels.errors import ArgumentError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def verdicts(explanation) -> dict[str, str]:
    return {verdict.variant: str(verdict) for verdict in explanation.verdicts}


def test_the_chosen_one_is_the_one_that_is_picked():
    torch.manual_seed(0)
    q = torch.randn(1, 2, 9, 32, device=DEVICE)
    for inputs in ({}, {"causal": True}, {"window": (3, None)}, {"mask": torch.ones(9, 9, device=DEVICE) > 0}):
        explanation = lk.explain("attention", q, q, q, **inputs)
        assert explanation.chosen == lk.ops["attention"].pick(q=q, k=q, v=q, **inputs).name
        assert [str(v) for v in explanation.verdicts].count("chosen") == 1
        assert [v.variant for v in explanation.verdicts] == [*reversed(lk.ops["attention"].variants)]


def test_refusals_say_why():
    q = torch.ones(1, 1, 4, 32, device=DEVICE)
    found = verdicts(lk.explain("attention", q, q, q, mask=torch.ones(4, 4, dtype=torch.bool, device=DEVICE)))
    assert found["v6_hopper"] == "refused: takes bfloat16 and float16"
    assert found["v3_tiled"] == "refused: takes no mask"
    a = torch.ones(4, 4, device=DEVICE)
    assert verdicts(lk.explain("matmul", a, a, activation="relu"))["v1_naive"].startswith("refused: the Numba kernel multiplies")


def test_it_reads_well_as_text_and_as_a_table():
    explanation = lk.explain("softmax", torch.ones(3, 5, device=DEVICE))
    first, *rest = str(explanation).splitlines()
    assert first.startswith("softmax(x: float32 (3, 5)): ")
    assert rest[0].split() == [explanation.chosen, "chosen"] and len(rest) == len(lk.ops["softmax"].variants)
    assert "<b>chosen</b>" in explanation._repr_html_() and "&lt;" not in explanation._repr_html_()


def test_where_it_runs():
    q = torch.ones(1, 1, 4, 32, device=DEVICE)
    where = "in the emulator, on the CPU" if DEVICE == "cpu" else torch.cuda.get_device_name()
    assert where in lk.explain("attention", q, q, q).runs
    assert "torch.ops.labkernels.attention" in lk.explain("attention", q.clone().requires_grad_(), q, q).runs


def test_where_nothing_has_to_be_computed_nothing_is_chosen():
    empty = torch.ones(1, 1, 0, 32, device=DEVICE)
    explanation = lk.explain("attention", torch.ones(1, 1, 4, 32, device=DEVICE), empty, empty)
    assert explanation.chosen is None and "nothing to compute" in explanation.runs


def test_wrong_inputs_are_named():
    q = torch.ones(1, 1, 4, 32, device=DEVICE)
    with pytest.raises(ArgumentError, match="attention: v is missing|missing a required argument: 'v'"):
        lk.explain("attention", q, q)
    with pytest.raises(ArgumentError, match="attention: k has head_dim 16"):
        lk.explain("attention", q, q[..., :16], q[..., :16])
    with pytest.raises(KeyError, match="did you mean 'attention'"):
        lk.explain("atention", q)


@pytest.mark.parametrize(
    "dtype, chosen, why", [(torch.bfloat16, "v3_cluster", "was measured to be faster"), (torch.float32, "v4_registers", "highest of the ladder")]
)
def test_cross_entropy_is_by_what_was_measured(dtype, chosen, why):
    """In 16 bits v4 would do, but v3 takes less time; and it is said so."""
    logits, target = torch.zeros(2, 64, dtype=dtype), torch.zeros(2, dtype=torch.int64)
    explanation = lk.explain("cross_entropy", logits, target)
    assert explanation.chosen == chosen == lk.ops["cross_entropy"].pick(logits=logits, target=target).name
    assert why in verdicts(explanation)["v2_online"]


def test_decode_attention_is_explained_as_it_is_picked():
    q, k, lengths = torch.zeros(1, 4, 64).bfloat16(), torch.zeros(1, 2, 40, 64).bfloat16(), torch.tensor([40], dtype=torch.int32)
    explanation = lk.explain("decode_attention", q, k, k, lengths)
    assert explanation.chosen == lk.ops["decode_attention"].pick(q=q, k=k, v=k, lengths=lengths).name == "v5_cluster"
    assert "v5_cluster was measured to be faster here" in verdicts(explanation)["v6_guess"]
