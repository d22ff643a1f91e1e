"""Every version against the reference and under the sanitizer; what is wrong is told by name."""

import pytest

import labkernels as lk
from labkernels.gemv.op import OP, native


@pytest.mark.parametrize("version", OP.variants)
def test_every_version_passes_the_check(version):
    assert lk.check("gemv", version).passed > 10


@pytest.mark.parametrize(
    "lost, told", [("norm_weight", "the product without the norm"), ("residual", "the product without the residual")]
)
def test_what_was_forgotten_is_told(lost, told):
    def forgetful(x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None):
        kept = {"norm_weight": norm_weight, "residual": residual, lost: None}
        return native(x, w, **kept, activation=activation, eps=eps, out_dtype=out_dtype)

    with pytest.raises(lk.CheckFailed, match=told):
        lk.check("gemv", forgetful)
