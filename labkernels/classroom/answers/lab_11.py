"""Predictions of lab 11, the KV cache."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "cache bytes": Prediction(
        (32 * 8 * 128 * 2 * 2, 32 * 8192 * 32 * 8 * 128 * 2 * 2 / 1e9),
        asks=("bytes a token", "GB of all conversations"),
        tolerance=0.001,
        hint="Keys and values, in each layer, for each of 8 heads, 128 numbers of 2 bytes. Then 32 times 8192 tokens of that.",
    ),
}
