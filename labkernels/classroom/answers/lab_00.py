"""Predictions of lab 00, start here."""

from labkernels.classroom.predictions import Prediction

DATA_SHEET_BYTES_PER_S = 4.8e12  # of the H200, as the lab states it

PREDICTIONS = {
    "axpy cost": Prediction(
        lambda n: (3 * 4 * n, 2 * n),
        asks=("bytes moved", "FLOPs"),
        hint="Follow one thread in the picture: count its arrows, each 4 bytes, and count the signs in a * x[i] + y[i]. There are n threads.",
    ),
    "axpy limit": Prediction(
        lambda n: (2 / 12, "bytes", 12 * n / DATA_SHEET_BYTES_PER_S * 1e3),
        asks=("FLOPs a byte", "the ceiling it meets", "milliseconds at least"),
        tolerance=0.01,
        hint="One element moves 12 bytes and needs 2 FLOPs. With fewer FLOPs a byte than both ceilings need, the bytes decide: "
        "divide all bytes by the bytes that move in a second, and mind that a second has 1000 milliseconds.",
    ),
}
