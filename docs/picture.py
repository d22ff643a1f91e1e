"""Draw docs/attention.svg from the recorded figures, and put what it shows into words in the README: `python docs/picture.py`."""
from __future__ import annotations

import re
from pathlib import Path

import pandas

from labkernels.lab.bench_table import BenchTable
from labkernels.lab.measured import label, recorded
from labkernels.lab.style import Picture

SVG = Path(__file__).with_name("attention.svg")
README = Path(__file__).parents[1] / "README.md"
IN_README = re.compile(r"(?<=!\[)[^\]]*(?=\]\(docs/attention\.svg\))")


def ladder(frame: pandas.DataFrame) -> Picture:
    """The ladder of attention in float32, heads of 128, no mask, over the sequence length: `frame` has the columns of data/README.md."""
    frame = frame[(frame["dtype"] == "float32") & (frame["head_dim"] == 128) & ~frame["causal"]]
    return BenchTable("attention", frame, label(frame), ("seq_len",)).plot()


if __name__ == "__main__":
    picture = ladder(recorded("attention"))
    picture.save(SVG)
    README.write_text(IN_README.sub(picture.alt, README.read_text(encoding="utf-8")), encoding="utf-8")
