"""Predictions of lab 10, quantised matmul."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "quantised bytes": Prediction(
        (11008 * 4096 * 2, 11008 * 4096 // 2 + 11008 * 4096 // 128 * 4, 4.25),
        asks=("bytes in bfloat16", "bytes in 4 bits", "bits a weight"),
        tolerance=0.001,
        hint="Half a byte for each weight, and for each 128 of them a scale and a zero of 2 bytes each: 32 bits for 128 weights.",
    ),
    "table conflicts": Prediction(
        (0, 8),
        asks=("conflicts in a table of 16 floats", "different words in one bank, of a table of 256"),
        hint="There are 32 banks of 4 bytes, and word i lies in bank i % 32. Lanes that want the same word do not wait for each other.",
    ),
}
