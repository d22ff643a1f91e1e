"""What the tests of quant_matmul share: a look at the counters that launches are given."""

import pytest
import torch

from labkernels.cuda import lasting


@pytest.fixture
def counters_used(monkeypatch) -> list[torch.Tensor]:
    used, counters = [], lasting.counters
    monkeypatch.setattr(lasting, "counters", lambda *given: used.append(counters(*given)) or used[-1])
    return used
