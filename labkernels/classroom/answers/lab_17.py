"""Predictions of lab 17, a kernel as a torch operator."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "swiglu bytes": Prediction(
        (20, 12),
        asks=("bytes an element by two kernels", "bytes an element by one kernel"),
        unit="bytes",
        hint="SiLU reads one number and writes one; a product reads two and writes one. A float32 has 4 bytes.",
    ),
}
