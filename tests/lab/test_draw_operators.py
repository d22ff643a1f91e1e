"""The picture of an operator's layers says what stands between a call and a kernel."""

import labkernels as lk


def test_the_layers_are_named_from_the_call_down_to_the_kernel():
    text = lk.draw.operator_layers().alt
    assert [text.index(name) for name in ("torch.compile", "dispatcher", "autograd", "your kernel")] == sorted(
        text.index(name) for name in ("torch.compile", "dispatcher", "autograd", "your kernel")
    )
    assert "fake kernel" in text and "schema" in text and "gradient" in text
