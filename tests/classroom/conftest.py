"""Small books made on the fly: a lab of plain Python that runs in a second, and the sample lab with everything in it."""
import shutil
from pathlib import Path

import pytest

from labkernels.classroom.book import Lab, make
from tests import warm_kernels

SMALL_LAB = '''\
# %% [markdown]
# # A small lab

# %% tags=["parameters"] again={"count": 5}
count = 3

# %% solution="triple"
def triple(x):
    ### BEGIN SOLUTION
    return 3 * x
    ### END SOLUTION

# %%
given = [triple(i) for i in range(count)]

# %% tests="triple" points=2
assert given == [3 * i for i in range(count)]
assert triple("ab") == "ababab"

# %%
import os
print(object(), os.getcwd())
'''


def small_book(root) -> Lab:
    (root / "solutions").mkdir()
    lab = Lab(root, "01_small")
    lab.source.write_text(SMALL_LAB)
    return lab


@pytest.fixture(scope="module", autouse=True)
def warm(jupyter_path):
    """Labs run in kernels that start warm."""
    with warm_kernels.used(jupyter_path):
        yield


@pytest.fixture
def small_lab(tmp_path) -> Lab:
    """A book of one lab, not made yet."""
    return small_book(tmp_path)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, jupyter_path) -> Lab:
    """The small lab, made; copy it before changing anything."""
    lab = small_book(tmp_path_factory.mktemp("book"))
    with warm_kernels.used(jupyter_path):
        make(lab)
    return lab


@pytest.fixture(scope="session")
def made_sample(tmp_path_factory, jupyter_path) -> Lab:
    """A book whose one lab is sample_lab.py, made."""
    root = tmp_path_factory.mktemp("sample_book")
    (root / "solutions").mkdir()
    lab = Lab(root, "99_sample")
    shutil.copy(Path(__file__).with_name("sample_lab.py"), lab.source)
    with warm_kernels.used(jupyter_path):
        make(lab)
    return lab
