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
        hint="You have counted bytes and FLOPs above. If a kernel does fewer FLOPs a byte than the cell above prints, it waits for bytes: "
        "divide all its bytes by those that can move in a second. A second has 1000 milliseconds.",
    ),
}
