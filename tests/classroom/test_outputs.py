"""Pictures in a worked notebook stay small and look the same."""
import base64
import io

import numpy as np
import pytest
from PIL import Image

from labkernels.classroom.outputs import smaller_png
from labkernels.classroom.source import BookError


def png(pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_picture_with_few_colours_gets_smaller_and_keeps_every_pixel():
    y, x = np.mgrid[:300, :400]
    pixels = np.stack([x // 20 * 10, y // 20 * 10, (x + y) // 70 * 20], -1).astype(np.uint8)
    few = np.where(((x // 20 + y // 20) % 7 == 0)[..., None], pixels // 64 * 64, 255).astype(np.uint8)
    small = smaller_png(png(few))
    assert len(small) < len(png(few))
    assert np.array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(small))).convert("RGB")), few)


def test_a_picture_that_stays_large_is_refused():
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    with pytest.raises(BookError, match="its picture has .* kB"):
        smaller_png(png(noise))
