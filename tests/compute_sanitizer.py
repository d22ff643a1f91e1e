"""Every CUDA C++ variant of the operations, on small shapes and on a GPU, under NVIDIA's compute-sanitizer: `make gpu-sanitize OUT=folder`.

    python tests/compute_sanitizer.py --record build/compute_sanitizer.csv --tools racecheck,memcheck softmax attention/v6_hopper

writes a row for each tool and variant: how often it was launched, and how many errors were reported of its kernels; rows that the file has of
others stay. Without names it takes all operations and tools, `--jobs` of them at a time. Each runs in a process of its own, `--launch softmax`,
which the tool watches. PyTorch's kernels, which make the inputs, are watched by initcheck alone, which must see every write. The exit status tells whether
there were errors.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {"memcheck": ("--report-api-errors", "no"), "racecheck": (), "synccheck": (), "initcheck": ()}
EVERY_KERNEL = {"initcheck"}  # the tools that watch PyTorch's kernels too
FOUND, OTHERS = "CALLS ", "other kernels"  # what the line begins with that tells what was launched; kernels that are in no variant's file
COLUMNS = ("tool", "op", "variant", "calls", "errors", "compute_sanitizer", "gpu", "driver", "cuda", "torch", "commit", "date")


def launch(place: str) -> None:
    """Launch every variant of one operation (or one of them, as attention/v6_hopper) on the small shapes in every dtype, and print how often, where,
    and with what."""
    import torch

    from labkernels.lab.environment import environment
    from labkernels.operation import ops

    name, _, only = place.partition("/")
    op = ops[name]
    calls = {variant: 0 for variant in op.variants if _is_cuda_cpp(op.variants[variant]) and only in ("", variant)}
    for dtype in op.dtypes:
        for shape in (*op.small_shapes, *op.large_shapes):  # large ones for those variants that take no small one, once
            wanted = [variant for variant in calls if shape in op.small_shapes or not calls[variant]]
            inputs = op.make_inputs(torch.Generator("cuda").manual_seed(0), "cuda", dtype, **shape) if wanted else {}
            for variant in map(op.variants.get, wanted):
                if variant.accepts(**inputs) is None:
                    variant.fn(**inputs)
                    torch.cuda.synchronize()
                    calls[variant.name] += 1
    print(FOUND + json.dumps({"calls": calls, "environment": environment()}), flush=True)


def kernels_of(name: str) -> dict[str, str]:
    """The variant by the name of each `__global__` function in its file."""
    from labkernels.cuda.source import Source
    from labkernels.operation import ops

    found = {}
    for variant in filter(_is_cuda_cpp, ops[name].variants.values()):
        found |= dict.fromkeys(Source.from_file(variant.source).kernels(), variant.name)
    return found


def errors_in(text: str, kernels: dict[str, str]) -> Counter:
    """How many errors compute-sanitizer reports of each variant, of which OTHERS are those of kernels that are none of `kernels`.

    Raises ValueError if the text has no summary: then the tool did not come to its end.
    """
    summary = re.search(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: )(\d+)", text)
    if summary is None:
        raise ValueError(f"compute-sanitizer gave no summary:\n{text[-3000:]}")
    errors = Counter()
    for report in re.split(r"\n(?:=========[ \t]*\n)+", text):
        blamed = {variant for kernel, variant in kernels.items() if re.search(rf"(?<![A-Za-z_]){kernel}(?![a-z_0-9])", report)}
        if re.search(r"=========\s+(?:Error: |Warning: |Potential |Invalid |Uninitialized |Barrier error|Out-of-|Divergent )", report):
            errors[min(blamed) if len(blamed) == 1 else OTHERS] += 1
    errors[OTHERS] += max(0, int(summary.group(1)) - errors.total())
    return +errors


def watched(tool: str, place: str, time_limit_s: float) -> list[dict]:
    """The rows of one operation, or of one of its variants, under one tool. ValueError if it did not come to its end."""
    from labkernels.lab.resource_table import kernels_in_sources

    name, _, _ = place.partition("/")
    ours = [] if tool in EVERY_KERNEL else sorted({f"kns={kernel}" for _, kernel in kernels_in_sources()})
    filters = [part for kernel in ours for part in ("--kernel-name", kernel)]
    command = ["compute-sanitizer", "--tool", tool, *TOOLS[tool], *filters, sys.executable, __file__, "--launch", place]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    try:
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False, timeout=time_limit_s)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{tool}, {place}: not done after {time_limit_s:.0f} s") from None
    line = next((line for line in ran.stdout.splitlines() if line.startswith(FOUND)), None)
    if line is None:
        raise ValueError(f"{tool}, {place}: the launches did not come to their end\n{ran.stdout[-3000:]}{ran.stderr[-3000:]}")
    found, errors = json.loads(line.removeprefix(FOUND)), errors_in(ran.stdout, kernels_of(name))
    if errors:
        print(ran.stdout[:6000], file=sys.stderr)
    version = re.search(r"Version (\S+)", subprocess.run(["compute-sanitizer", "--version"], capture_output=True, text=True, check=False).stdout)
    common = {"tool": tool, "op": name, "compute_sanitizer": version.group(1) if version else "unknown", **found["environment"]}
    calls = {**found["calls"], **({OTHERS: 0} if errors[OTHERS] else {})}
    return [{**common, "variant": variant, "calls": count, "errors": errors[variant]} for variant, count in calls.items()]


def record(rows: list[dict], path: Path) -> None:
    """Write the rows into the table; those of other tools and variants that it has stay."""
    new = {(row["tool"], row["op"], row["variant"]) for row in rows}
    kept = []
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if (row["tool"], row["op"], row["variant"]) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


def _is_cuda_cpp(variant) -> bool:
    return variant.source is not None and variant.source.suffix == ".cu"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launch", metavar="OP", help="launch the variants of one operation, or one of them, here")
    parser.add_argument("--record", type=Path, default=ROOT / "build" / "compute_sanitizer.csv", metavar="FILE", help="the table")
    parser.add_argument("--tools", default=",".join(TOOLS), help=f"some of {', '.join(TOOLS)}")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=600.0, help="what one process may take")
    parser.add_argument("names", nargs="*", metavar="OP[/VARIANT]", help="operations; all of them if none is named")
    options = parser.parse_args(arguments)
    if options.launch:
        launch(options.launch)
        return 0
    from labkernels.operation import ops

    places = options.names or list(ops)
    unclean = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = {pool.submit(watched, tool, place, options.seconds): (tool, place) for tool in options.tools.split(",") for place in places}
        for done in as_completed(waiting):
            tool, place = waiting[done]
            try:
                rows = done.result()
            except ValueError as error:
                unclean += 1
                print(error, flush=True)
                continue
            record(rows, options.record)
            errors = sum(row["errors"] for row in rows)
            unclean += errors > 0
            print(f"{tool} {place}: {sum(row['calls'] for row in rows)} calls of {len(rows)} variants, {errors} errors", flush=True)
    return 1 if unclean else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
