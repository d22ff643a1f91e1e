"""Predictions of lab 09, small kernels."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "norm bytes": Prediction(
        (28, 8, 16),
        asks=("bytes an element by four kernels", "bytes an element by one kernel", "bytes an element with a residual"),
        unit="bytes",
        hint="x * x reads an element and writes one; the mean only reads; each product reads one and writes one. With a residual two are read, and "
        "two are written: the sum is needed later.",
    ),
    "rope bytes": Prediction(
        (36, 8, "-theta"),
        asks=("bytes an element in steps", "bytes an element in one kernel", "the angle on the way back"),
        hint="An element of x is in one half. Each of four products reads half of x and writes as much: 2 + 2 bytes an element. The difference and the sum "
        "read two such halves and write one: 4 + 2. The cat reads and writes all: 4 + 4. And the gradient of a rotation is its transpose.",
    ),
}
