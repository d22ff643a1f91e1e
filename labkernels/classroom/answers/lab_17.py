"""Predictions of lab 17, a kernel as a torch operator."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "swiglu bytes": Prediction(
        (32, 12),
        asks=("bytes an element by three kernels", "bytes an element by one kernel"),
        unit="bytes",
        hint="A sigmoid reads one number and writes one; a product reads two and writes one. A float32 has 4 bytes.",
    ),
}
