"""Predictions of lab 05, flash attention."""

import math

from labkernels.classroom.predictions import Prediction

_HEADS, _HEAD_DIM = 32, 64

PREDICTIONS = {
    "rescaled accumulator": Prediction(
        (1.5 * math.exp(-2) + 1, 2.0 * math.exp(-2) + 1),
        asks=("the sum", "the first element of o"),
        tolerance=0.01,
        hint="The maximum grows from 1 to 3, so all that was there before is multiplied by exp(1 - 3). The new key comes in with weight exp(3 - 3).",
    ),
    "attention memory": Prediction(
        (4 * _HEADS * 65536 * (65536 + _HEAD_DIM), 4 * _HEADS * 65536 * _HEAD_DIM),
        asks=("lab 04", "this kernel"),
        unit="bytes",
        tolerance=0.002,
        hint="The output has one row of head_dim numbers for each head and token, the scores one of as many numbers as there are tokens.",
    ),
    "bytes of k and v": Prediction(
        (_HEADS * 4096**2 * _HEAD_DIM * 8, _HEADS * 4096**2 * _HEAD_DIM * 8 / 64),
        asks=("one query at a time", "64 queries together"),
        unit="bytes",
        hint="Each of the 4096 queries of a head reads 4096 keys and 4096 values of 64 floats.",
    ),
    "causal tiles": Prediction(
        (544, 16 * 2016),
        asks=("tiles visited", "scores computed in vain"),
        hint="Block 0 sees 64 keys, 4 tiles of 16; each block after it sees 64 keys more. Hidden scores lie in the last 64 keys of each block only.",
    ),
    "a row's lanes": Prediction(
        (4, 2),
        asks=("lanes that share a row", "shuffles until each knows the maximum"),
        hint="Count the different lane numbers in one row of the picture. Each shuffle doubles the number of lanes that a maximum is of.",
    ),
    "products and exponentials": Prediction(
        (512, 512, 0.5),
        asks=("cycles of both products", "cycles of the exponentials", "share of the tensor cores' time"),
        tolerance=0.01,
        hint="Each pair of a query and a key takes 64 FMAs, 2 FLOPs each, in the first product, as many in the second, and one exponential.",
    ),
}
