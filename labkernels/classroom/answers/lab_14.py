"""Predictions of lab 14, training."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "training memory": Prediction(
        (0.645 * 16, 6.74 * 16),
        asks=("GB of 645 million weights", "GB of 6.74 billion weights"),
        tolerance=0.01,
        hint="For each weight: itself and its gradient, 2 bytes each; its master and two moments, 4 bytes each.",
    ),
    "mfu": Prediction(
        ((6 * 0.645e9 + 3 * 24 * 2 * 2 * 1536 * 1024) * 16 * 2048 / 0.285 / 989e12,),
        asks=("share of 989 TFLOP/s",),
        tolerance=0.01,
        hint="FLOPs of a token: 6 times the weights, and 3 times 24 layers of 2 * 2 * 1536 * 1024. Times the tokens of a step, over its time, over the peak.",
    ),
}
