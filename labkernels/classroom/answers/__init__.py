"""What the labs' predictions should be: one file a lab, `lab_NN.py`, each with a dictionary `PREDICTIONS` by name.

    PREDICTIONS = {
        "softmax bytes": Prediction(
            lambda cols: (3 * cols * 4, 2 * cols * 4),
            asks=("bytes read by three passes", "bytes read by one pass"),
            unit="bytes",
            hint="Each pass reads every value of the row once; a float32 has 4 bytes.",
        ),
    }
"""
