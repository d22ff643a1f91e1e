"""Microseconds of `quant_matmul`'s variants by (scheme, m, n, k), written by labkernels/quant/selection.py from recorded figures."""

GPU = "NVIDIA H200"
MICROSECONDS: dict[tuple[str, int, int, int], dict[str, float]] = {}
