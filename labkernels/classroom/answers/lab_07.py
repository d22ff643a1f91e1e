"""Predictions of lab 07, tensor cores and Hopper."""

from labkernels.classroom.predictions import Prediction

PREDICTIONS = {
    "fragments": Prediction(
        (8, 4, 4, 64),
        asks=("elements of A", "elements of B", "elements of C", "times the multiplications of an FMA"),
        hint="Every element has one lane, and there are 32 lanes. Each of the 16 x 8 sums takes 16 multiplications; an FMA of a warp has 32 in all.",
    ),
    "conflicts of ldmatrix": Prediction(
        (28, 6),
        asks=("bank conflicts", "the place of piece 3 in row 5"),
        hint="8 pieces in the same four banks take 8 passes, of which one is needed; and there are four matrices. The place is to be read in the right picture.",
    ),
    "parity of tile 5": Prediction(
        (1, 0, 1),
        asks=("the stage", "the consumer's parity", "the producer's parity"),
        hint="Tiles 1, 3 and 5 go to the same stage, in rounds 0, 1 and 2. The consumer waits for this round's phase of full, the producer for the last round's phase of empty.",
    ),
    "descriptor": Prediction(
        (1024, 4, 2),
        asks=("the stride", "wgmmas for a tile", "the step of the descriptor"),
        hint="A row has 64 elements of 2 bytes, and the next 8 rows follow the first 8. One wgmma takes 16 elements of each row; the descriptor counts in units of 16 bytes.",
    ),
    "three mistakes": Prediction(
        ("race", "deadlock", "misaligned"),
        asks=("the first", "the second", "the third"),
        hint="A box that comes too early is written while somebody reads. A phase that waits for bytes nobody sends does not end. And which of the words is left for pieces that lie elsewhere?",
    ),
    "bytes in a cluster": Prediction(
        ((128 + 256) * 128, (128 + 128) * 128),
        asks=("bytes of a block on its own", "bytes of a block in the cluster"),
        unit="bytes",
        hint="A tile of a has 128 rows of 64 elements of 2 bytes, a tile of b 256. In the cluster a block fetches all of its a and half of b.",
    ),
}
