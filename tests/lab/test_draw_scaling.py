"""Pictures of several GPUs say what they show."""

import pytest

import labkernels as lk
from labkernels.llm import ModelConfig
from labkernels.llm.parallel import traffic


@pytest.mark.parametrize("count", [2, 4])
def test_the_ring_ends_with_all_numbers_everywhere_and_each_rank_had_its_piece_in_between(count):
    panels = lk.draw.ring_all_reduce(count).figure.axes
    everyone = "".join(map(str, range(count)))

    def cells(panel):
        texts = [text.get_text() for text in panel.texts]
        return [texts[row * (count + 1) : row * (count + 1) + count] for row in range(count)]

    halfway, end = cells(panels[count - 1]), cells(panels[2 * count - 2])
    assert all(halfway[rank][rank] == everyone for rank in range(count))
    assert sum(cell == everyone for row in halfway for cell in row) == count
    assert all(cell == everyone for row in end for cell in row)


def test_memory_curves_and_parts_are_told():
    llama = ModelConfig.preset("llama-2-7b")
    picture = lk.draw.memory_per_rank({mode: traffic.memory_per_rank(llama, mode, 8) for mode in traffic.MODES}, 141)
    assert "ddp: 107.8; fsdp: 15.2; tensor: 17.2" in picture.alt
    assert "one from 3.00 to 1.00; two from 3.00 to 1.50" in lk.draw.loss_by_mode({"one": [3, 2, 1], "two": [3, 2, 1.5]}).alt
    assert "x is on all 3 ranks" in lk.draw.split_ffn(3).alt
