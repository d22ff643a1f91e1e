"""What the tests of the device headers share: where they run, and the architectures that each header must compile for."""

import pytest


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """Each instruction is tested in the emulator, and where there is a GPU on that too."""
    return request.param


@pytest.fixture(params=["sm_80", "sm_90a"])
def arch(request) -> str:
    """An architecture that the sources must compile for with NVRTC, GPU or not. Newer instructions stand behind __CUDA_ARCH__."""
    return request.param
