"""Predictions of lab 12, sampling."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "nucleus": Prediction(
        (3, 0.4 / 0.9),
        asks=("tokens that stay", "the probability of the first"),
        tolerance=0.001,
        hint="Add them up, the largest first, until the sum is at least 0.8. What stays is divided by that sum.",
    ),
}
