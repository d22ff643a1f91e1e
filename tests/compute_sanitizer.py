"""Launches every variant of the operations on their small shapes, on a GPU, for compute-sanitizer to watch: `make gpu-sanitize OUT=folder`.

    compute-sanitizer --tool racecheck python tests/compute_sanitizer.py [operation ...]
"""

from __future__ import annotations

import sys

import torch

from labkernels.operation import ops


def main(names: list[str]) -> None:
    launched = 0
    for name in names or ops:
        op = ops[name]
        for dtype in op.dtypes:
            for shape in op.small_shapes:
                inputs = op.make_inputs(torch.Generator("cuda").manual_seed(0), "cuda", dtype, **shape)
                for variant in op.variants.values():
                    is_cuda_cpp = variant.source is not None and variant.source.suffix == ".cu"
                    if is_cuda_cpp and variant.accepts(**inputs) is None:
                        variant.fn(**inputs)
                        torch.cuda.synchronize()
                        launched += 1
    print(f"{launched} calls of variants")


if __name__ == "__main__":
    main(sys.argv[1:])
