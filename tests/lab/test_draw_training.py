"""Pictures of training say what they show."""

import pandas
import torch

import labkernels as lk
from labkernels.llm import ModelConfig
from labkernels.llm.estimate import training_memory


def test_a_step_has_a_box_for_each_part():
    assert "A row of 4 boxes" in lk.draw.training_step(2).alt


def test_schedules_are_told_by_their_ends():
    assert "line from 0 to 0.9" in lk.draw.learning_rates({"line": lambda step: step / 10}, 10).alt


def test_memory_is_told_by_part():
    picture = lk.draw.training_memory({"small": training_memory(ModelConfig.preset("645m"), 1, 2048)}, 141)
    assert "small: weights 1.3, master 2.6, optimizer 5.2, gradients 1.3" in picture.alt


def test_singular_values_are_those_of_the_matrices():
    first = torch.diag(torch.tensor([0.8, 0.1, 0.01]))
    assert "the middle one grows from 0.8 to 1, the largest from 0.80 to 1.00" in lk.draw.singular_values([first, torch.eye(3)]).alt


def test_the_ladder_has_its_rows_and_their_rates():
    frame = pandas.DataFrame({"row": ["hf_compiled", "fp8", "muon"], "tokens_per_s": [100_000.0, 150_000.0, None], "mfu": [0.4, 0.6, None]})
    picture = lk.draw.ablation(frame)
    assert "hf_compiled 100k; fp8 150k." in picture.alt and len(picture.figure.axes[0].patches) == 2
