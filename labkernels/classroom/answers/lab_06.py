"""Predictions of lab 06, flash attention's backward pass."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "softmax gradient": Prediction(
        (0.25 * (4 - 7), 0.75 * (8 - 7)),
        asks=("the first score's gradient", "the second score's gradient"),
        tolerance=0.001,
        hint="First the average of 4 and 8, each with its weight. Then each difference from it, times the weight.",
    ),
    "keeping the weights": Prediction(
        (32 * 16384**2 * 2, 32 * 16384**2 * 128 * 2),
        asks=("bytes of all weights", "FLOPs of the scores"),
        tolerance=0.001,
        hint="Each head has a weight for each pair of tokens, and a bfloat16 has 2 bytes. A score is a product of two rows of 128: 128 FMAs.",
    ),
    "backward products": Prediction(
        (5, 7, "dq"),
        asks=("products in one kernel", "products in two kernels", "the gradient that may differ"),
        hint="Every kernel needs the scores and dp. Then one product for each of the gradients that it computes. Atomic additions have no order.",
    ),
    "float32 from halves": Prediction(
        (3, 287 / 3),
        asks=("products of halves", "TFLOP/s"),
        tolerance=0.02,
        hint="Multiply the two sums out: four products, of which one is left out. So many take the place of each one that counts.",
    ),
}
