"""Predictions of lab 03, matrix multiplication."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "matmul cost": Prediction(
        (2 * 4096**3, 3 * 4096**2 * 4, 2 * 4 * 4096**3),
        asks=("FLOPs", "the least bytes", "the bytes asked for"),
        hint="The result has 4096 * 4096 elements and each takes 4096 FMAs, of 2 FLOPs. There are three matrices, of 4 bytes an element. An FMA reads two numbers.",
    ),
    "matmul sectors": Prediction(
        (32, 1, 1, 4),
        asks=("left, x counting rows", "right, x counting rows", "left, x counting columns", "right, x counting columns"),
        hint="The 32 lanes of a warp differ in x and share y. Which of a[row * k + i] and b[i * n + col] is the same for all of them, and how far apart are the others?",
    ),
    "matmul tiles": Prediction(
        (2 * 4 * 4096**3 / 32, 2 * 32 * 32 * 4),
        asks=("bytes of a and b", "bytes of shared memory"),
        unit="bytes",
        hint="A number fetched by one thread now serves 32 threads. A tile has 32 * 32 numbers of 4 bytes, and there are two.",
    ),
    "matmul patches": Prediction(
        (0.5, 0.25, 8),
        asks=("loads with 4 x 4", "loads with 8 x 8", "the patch in balance"),
        hint="A patch of p x p takes 2 * p loads for p * p FMAs. In the time of one load, 4 FMAs can start.",
    ),
}
