"""Every lab runs in kernels that start warm."""
import pytest

from tests import warm_kernels


@pytest.fixture(scope="module", autouse=True)
def warm(jupyter_path):
    with warm_kernels.used(jupyter_path):
        yield
