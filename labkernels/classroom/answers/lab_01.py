"""Predictions of lab 01, threads and memory."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "blocks and threads": Prediction(
        lambda n: (-(-n // 256), 2 * 256 + 5, -n % 256),
        asks=("blocks", "the element of thread 5 of block 2", "threads without an element"),
        hint="Blocks 0 and 1 come before block 2, each with 256 threads. Whole blocks must cover n: divide and round up.",
    ),
    "sectors by stride": Prediction(
        (4, 8, 16, 32, 32),
        asks=("stride 1", "stride 2", "stride 4", "stride 8", "stride 32"),
        hint="A sector holds 8 floats. How many lanes find theirs in the same sector? No request needs more sectors than it has lanes.",
    ),
    "sectors of requests": Prediction(
        (4, 5, 4, 1, 13),
        asks=("neighbours", "4 bytes late", "backwards", "one address", "disorder"),
        hint="Address 0 to 31 is sector 0, 32 to 63 is sector 1. Two lanes in one sector count once, wherever they stand in the warp.",
    ),
    "transpose requests": Prediction(
        (4, 32),
        asks=("read", "written"),
        hint="The lanes of a warp have neighbouring columns and the same row. Where in memory is x[row][col], and where is out[col][row]?",
    ),
}
