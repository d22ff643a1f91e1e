"""What is measured of the model by operation, and how it is shown."""

import pandas
import pytest
import torch

from labkernels.errors import LabKernelsError
from labkernels.llm import switched
from labkernels.llm.kernels import OPERATIONS


def test_each_operation_has_its_row():
    assert list(switched.variants()) == ["nothing", *OPERATIONS, "rope and attention", "everything"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about a machine without one")
def test_without_a_gpu_nothing_is_recorded(tmp_path):
    with pytest.raises(LabKernelsError, match="recorded on an NVIDIA GPU"):
        switched.record(tmp_path)


def test_gains_are_against_nothing_switched(monkeypatch):
    rows = pandas.DataFrame({"switched": ["nothing", "norm", "loss"], "ms": [10.0, 9.0, 10.5], "peak_gb": [4.0, 4.0, 3.0]})
    monkeypatch.setattr(switched, "recorded", lambda name: rows)
    assert switched.table()["gained, ms"].to_dict() == {"nothing": 0.0, "norm": 1.0, "loss": -0.5}
