"""Tidying what an executed lab shows, so that making it twice gives the same file.

Paths of this machine and memory addresses are removed from text, pictures are stored with a palette, and metadata that depends
on the machine or the hour is dropped.
"""
from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from nbformat import NotebookNode
from PIL import Image

from labkernels.classroom.source import BookError

MAX_PNG_BYTES = 300_000

_ADDRESS = re.compile(r"\b0x[0-9a-f]{8,16}\b")
_KERNEL_FILE = re.compile(r"/[^\s:\"']*/ipykernel_\d+/\d+\.py")


def tidy(cell: NotebookNode, root: Path) -> None:
    """Make the outputs of an executed cell reproducible, in place. Raises BookError for stderr and for too large pictures."""
    cell.metadata.pop("execution", None)
    for output in cell.get("outputs", []):
        _tidy_output(output, root)


def _tidy_output(output: NotebookNode, root: Path) -> None:
    if output.output_type == "stream":
        if output.name == "stderr":
            raise BookError(f"it writes to stderr: {output.text.strip()[:500]}")
        output.text = without_machine(output.text, root)
    elif output.output_type == "error":
        output.traceback = [without_machine(line, root) for line in output.traceback]
    else:
        for kind, data in output.data.items():
            if kind == "image/png":
                output.data[kind] = smaller_png(data)
            elif isinstance(data, str):
                output.data[kind] = without_machine(data, root)


def without_machine(text: str, root: Path) -> str:
    """`text` without this machine's paths and addresses: paths below `root` become relative, addresses 0x..."""
    text = _KERNEL_FILE.sub("<cell>", text)
    text = text.replace(f"{root}/", "").replace(str(root), ".").replace(str(Path.home()), "~")
    return _ADDRESS.sub("0x...", text)


def smaller_png(data: str) -> str:
    """The base64 PNG with a palette of 256 colours where that is smaller; raises BookError above 300 kB."""
    raw = base64.b64decode(data)
    image = Image.open(io.BytesIO(raw))
    buffer = io.BytesIO()
    opaque = Image.new("RGBA", image.size, "white")
    opaque.alpha_composite(image.convert("RGBA"))
    opaque.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    best = min(raw, buffer.getvalue(), key=len)
    if len(best) > MAX_PNG_BYTES:
        raise BookError(f"its picture has {len(best) // 1000} kB, more than {MAX_PNG_BYTES // 1000}")
    return base64.b64encode(best).decode() + "\n"
