"""Predictions of lab 01, threads and memory."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "blocks and threads": Prediction(
        lambda n: (-(-n // 256), 2 * 256 + 5, -n % 256),
        asks=("blocks", "the element of thread 5 of block 2", "threads without an element"),
        hint="Blocks 0 and 1 come before block 2, each with 256 threads. Whole blocks must cover n: divide and round up.",
    ),
    "sectors of requests": Prediction(
        (16, 32, 4, 5, 1),
        asks=("x[4 * lane]", "x[32 * lane]", "x[31 - lane]", "x[lane + 1]", "x[0]"),
        hint="Floats 0 to 7 are the first sector, 8 to 15 the next. Two lanes in one sector count once, wherever they stand in the warp, and no request needs more sectors than it has lanes.",
    ),
    "sectors of pieces": Prediction(
        (32, 8),
        asks=("sectors of a request", "times the bytes"),
        hint="256 threads share 2048 elements. How many bytes apart are the elements of lane 0 and lane 1 in the first turn of the loop? A request that wastes nothing has 4 sectors.",
    ),
    "transpose requests": Prediction(
        (4, 32),
        asks=("read", "written"),
        hint="The lanes of a warp have neighbouring columns and the same row. Where in memory is x[row][col], and where is out[col][row]?",
    ),
    "passes of requests": Prediction(
        (1, 2, 32, 1, 1),
        asks=("word[lane]", "word[2 * lane]", "word[32 * lane]", "word[33 * lane]", "word[7]"),
        hint="Write down (stride * lane) % 32, the bank, for lanes 0, 1, 2 and for 16. How many different words does the fullest bank have to give?",
    ),
    "requests with float4": Prediction(
        (64, 16, 16),
        asks=("requests of scale", "requests of scale4", "sectors of one of scale4"),
        hint="A request serves 32 lanes, each with one float or with four. A sector has room for two float4.",
    ),
}
