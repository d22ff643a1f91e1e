"""Predictions of lab 16, scaling out."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "ring bytes": Prediction(
        (1.29, 2 * 7 / 8 * 1.29),
        asks=("GB that each of 2 GPUs sends", "GB that each of 8 GPUs sends"),
        tolerance=0.01,
        hint="A piece is an nth of the 1.29 GB. Each GPU sends one in every step, and there are n - 1 steps in each of the two halves.",
    ),
    "shared memory": Prediction(
        (6.74 * 16, 6.74 * 16 / 8),
        asks=("GB on each of 8 GPUs that have everything", "GB on each where all of it is shared"),
        tolerance=0.01,
        hint="For each weight: itself and its gradient, 2 bytes each; its master and two moments, 4 bytes each. Shared, each GPU has an eighth.",
    ),
}
