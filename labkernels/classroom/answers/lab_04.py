"""Predictions of lab 04, naive attention."""

import math

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "causal mask": Prediction(
        (10, 115),
        asks=("keys that query 3 sees", "visible pairs"),
        hint="The last query, 9, sees all 16 keys, and each query before it one key less than the next.",
    ),
    "score matrix bytes": Prediction(
        (4 * 32 * 8192 * 64 * 4, 4 * 32 * 8192 * 8192 * 4),
        asks=("q", "the scores"),
        unit="bytes",
        hint="q has the shape (batch, heads, seq, head_dim), the scores (batch, heads, seq, seq); each number takes 4 bytes.",
    ),
    "longest naive sequence": Prediction(
        (math.sqrt(141e9 / (32 * 4)),),
        asks=("tokens whose scores fit",),
        unit="tokens",
        tolerance=0.1,
        hint="N tokens have 32 * N * N scores of 4 bytes each.",
    ),
    "bytes asked for": Prediction(
        (32 * 4096**2 * 2 * 64 * 4, 2 * 32 * 4096 * 64 * 4),
        asks=("asked for", "q and k together"),
        unit="bytes",
        hint="There is a thread for each score, and each reads a row of q and a row of k, 64 floats each.",
    ),
    "naive attention traffic": Prediction(
        (16 * 32 * 4096**2, 4 * 64 * 32 * 4096**2),
        asks=("bytes of scores moved", "FLOPs of both products"),
        tolerance=0.001,
        hint="Follow one score: which kernel writes it, which reads it? And for one pair of query and key, both products go over head_dim.",
    ),
}
