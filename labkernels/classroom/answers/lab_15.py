"""Predictions of lab 15, the inference engine."""

from labkernels.classroom.predictions import Prediction

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
    "shared pages": Prediction(
        (40 * 72, 62 + 40 * 10),
        asks=("pages without sharing", "pages with sharing"),
        hint="1000 tokens fill 62 pages and 8 places of another, which is everybody's own: it goes on with the question. Each has a last page that is not full.",
    ),
}
