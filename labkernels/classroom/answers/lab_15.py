"""Predictions of lab 15, the inference engine."""

from labkernels.classroom.predictions import Prediction

_WEIGHTS = 2 * (16 * 2048 * ((32 + 2 * 8) * 64 + 32 * 64 + 3 * 8192) + 128_256 * 2048)  # bytes of Llama 3.2 1B's matrices, the head among them
_CACHED = 16 * 2 * 8 * 64 * 2  # bytes of a token's keys and values

PREDICTIONS = {
    "engine work": Prediction(
        (512 * 64 + 512 * 511 // 2, 64 + 511),
        asks=("tokens in all passes", "tokens if each goes through once"),
        tolerance=0.001,
        hint="The first pass has the prompt's 64 tokens, the next one 65, the last one 64 + 511. The token that the last pass draws goes through none.",
    ),
    "engine launches": Prediction(
        (16 * 30 + 3, 16 * 5 + 3, 1e6 / ((16 * 5 + 3) * 15)),
        asks=("launches of v2", "launches of v3", "tokens a second"),
        tolerance=0.005,
        hint="Layers times launches a layer, and three more. A token takes its launches times 15 µs; a second has 1,000,000 µs.",
    ),
    "engine rate": Prediction(
        lambda gb_per_s: tuple(batch * gb_per_s * 1e9 / (_WEIGHTS + batch * 320 * _CACHED) for batch in (1, 16)),
        asks=("tokens a second of one", "tokens a second of sixteen"),
        tolerance=0.005,
        hint="The bytes of a pass over the bandwidth are its seconds. A pass gives each of its sequences one token, and reads the weights once for all.",
    ),
    "shared pages": Prediction(
        (40 * 72, 62 + 40 * 10),
        asks=("pages without sharing", "pages with sharing"),
        hint="1000 tokens fill 62 pages and 8 places of another, which is everybody's own: it goes on with the question. Each has a last page that is not full.",
    ),
}
