"""Predictions of lab 13, the transformer."""

from labkernels.classroom.predictions import Prediction

_BLOCK = (32 + 2 * 8) * 64 * 2048 + 32 * 64 * 2048 + 3 * 8192 * 2048 + 2 * 2048

PREDICTIONS = {
    "transformer parameters": Prediction(
        (_BLOCK, (16 * _BLOCK + 128_256 * 2048 + 2048) / 1e9),
        asks=("parameters of a block", "billions of parameters of the model"),
        tolerance=0.001,
        hint="48 heads of 64 rows and 2048 columns, a square product back, three products of 8192 x 2048, two norms of 2048. "
        "Then 16 of these, one embedding, which is the head, too, and the last norm.",
    ),
    "transformer flops": Prediction(
        (6 * 0.6449, 2 * 6 * 0.6449e9 / (12 * 24 * 24 * 64)),
        asks=("GFLOP of the products with weights", "length of the sequence, in tokens"),
        tolerance=0.02,
        hint="6 FLOPs for each parameter. Each key that is seen costs 4 FLOPs for each of 24 x 64 numbers, in 24 layers, and three times that with the way back; "
        "half of the sequence is seen.",
    ),
}
