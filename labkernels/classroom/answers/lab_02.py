"""Predictions of lab 02, reductions and softmax."""

import math

from labkernels.classroom.predictions import Prediction

_MATRIX_BYTES = 16384 * 4096 * 4

PREDICTIONS = {
    "sum limit": Prediction(
        (2**26 * 4 / 4.8e12 * 1000, 2**26 / (1024 * 256)),
        asks=("milliseconds to read the vector", "times fewer atomic additions"),
        tolerance=0.01,
        hint="A float32 has 4 bytes, 4.8 TB/s are 4.8e12 bytes in a second, and a second has 1000 milliseconds. 1024 * 256 threads make one atomic addition each.",
    ),
    "busy warps": Prediction(
        (8, 1),
        asks=("with the nearest partner first", "with neighbours"),
        hint="Write down the numbers of the 16 threads: t is a multiple of 16. A warp is 32 neighbours.",
    ),
    "passes of a tree": Prediction(
        (2, 8),
        asks=("at distance 1", "at distance 4"),
        hint="Word w lies in bank w % 32. Lanes 2 words apart use every second bank, lanes 8 words apart every eighth. How many words must a used bank give?",
    ),
    "sum of ones": Prediction(
        (2**24, 20_000_000),
        asks=("one by one", "in a tree"),
        hint="A float32 has 24 binary digits. What is the smallest whole number that needs 25, and what happens when 1 is added just below it? In a tree, equals are added to equals.",
    ),
    "merged pair": Prediction(
        (3, 2 + 4 * math.exp(-2)),
        asks=("the maximum m", "the sum s"),
        tolerance=0.01,
        hint="The merged maximum is the larger of the two. The other sum was measured against 1 and now is measured against 3: a factor of exp(1 - 3).",
    ),
    "softmax trips": Prediction(
        (4 * _MATRIX_BYTES, 2 * _MATRIX_BYTES),
        asks=("three passes", "the least possible"),
        unit="bytes",
        hint="One trip of the whole matrix is 16384 * 4096 * 4 bytes. Count every walk over the row that reads it, and the one write.",
    ),
    "softmax winner": Prediction(
        (2, 3, "three passes", "running pair"),
        asks=("exponentials in three passes", "exponentials with the running pair", "faster where rows stay in the cache", "faster where they do not"),
        hint="A merge takes two exponentials, and the result needs one. From a cache a read costs little, from memory a lot. The faster one is 'three passes' or 'running pair'.",
    ),
}
