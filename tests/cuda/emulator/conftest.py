"""What the tests of device code share: the machines that it runs on."""

import pytest


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """Each test runs in the emulator, and where there is a GPU on that too: both must give the same."""
    return request.param
