"""Predictions of lab 08, the feed-forward network."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "ffn balance": Prediction(
        (2 * 4096 * 11008 * 2, 2 * 2 * 4096 * 11008, 989e12 / 4.8e12),
        asks=("bytes of both weights", "FLOPs a token", "tokens at which both take as long"),
        tolerance=0.02,
        hint="Two matrices of 4096 x 11008, 2 bytes a number. Each number of them is an FMA for each token: 2 FLOPs. Then divide the time for the bytes by "
        "the time for one token's FLOPs.",
    ),
    "ffn shares": Prediction(
        (128 * 4096 * 4, 128 * 4096 * 4096 * 4, "one"),
        asks=("bytes of shares for 1 token", "bytes of shares for 4096 tokens", "what one kernel pays for"),
        hint="Each of 128 blocks writes a share as long as y: 4096 numbers of 4 bytes for each token.",
    ),
}
