"""A checkpoint of 16-bit shards read at int4: seconds, and the most memory that there ever was, beside the estimate from the configuration alone.

    python -m labkernels.llm.inference.bench_loading llama-2-7b --quantize int4 --head none int8 --out data/measured/h200/loading.csv

Weights are random. The folder (13.5 GB for 7B) is written to a temporary place first and removed at the end; files are in the page cache when they
are read, so seconds are those of a warm disk. Each row generates as well: the peak is that of loading and of 128 tokens behind a prompt of 400.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path

import torch

from labkernels.llm.config import ModelConfig
from labkernels.llm.estimate import inference_memory
from labkernels.llm.inference.bench_engine import random_model
from labkernels.llm.inference.engine import Engine

PROMPT, NEW, CONTEXT = 400, 128, 2048  # tokens
SHARD_BYTES = 5 * 10**9


def measure(folder: Path, config: ModelConfig, quantize: str | None, head: str | None) -> dict:
    """Load the folder so, and generate twice: a graph is captured when a size comes again."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    engine = Engine.from_pretrained(folder, quantize, head=head, max_batch=1, max_seq_len=CONTEXT)
    torch.cuda.synchronize()
    load_s, load_peak = time.perf_counter() - begin, torch.cuda.max_memory_allocated() - before
    for _ in range(2):
        engine.generate([1, 2, 3, 4] * (PROMPT // 4), max_new_tokens=NEW, ignore_eos=True)
    estimate = inference_memory(config, 1, CONTEXT, dtype=engine.dtype, quantize=quantize, head=head, prefill_tokens=PROMPT)
    return {
        "quantize": quantize or "none", "head": head or "none", "context": CONTEXT, "load_s": load_s, "load_peak_gb": load_peak / 1e9,
        "peak_gb": (torch.cuda.max_memory_allocated() - before) / 1e9, "estimate_gb": estimate.peak / 1e9, "left_before_gb": before / 1e9,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a preset of ModelConfig")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16"], help="of the shards")
    parser.add_argument("--quantize", nargs="*", default=["int4"], type=lambda given: None if given == "none" else given)
    parser.add_argument("--head", nargs="*", default=[None], type=lambda given: None if given == "none" else given)
    parser.add_argument("--out", type=Path, default=None, help="a csv")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_loading: figures are measured on an NVIDIA GPU, and this machine has none")
    import pandas

    from labkernels.lab.environment import environment

    config, rows = ModelConfig.preset(given.model), []
    with tempfile.TemporaryDirectory() as folder:
        random_model(config, getattr(torch, given.dtype), "cuda").save_pretrained(folder, max_shard_bytes=SHARD_BYTES)
        shards = list(Path(folder).glob("*.safetensors"))
        checkpoint = {"model": given.model, "dtype": given.dtype, "shards": len(shards), "checkpoint_gb": sum(shard.stat().st_size for shard in shards) / 1e9}
        for quantize in given.quantize:
            for head in given.head:
                rows.append(checkpoint | measure(Path(folder), config, quantize, head) | environment())
                print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True)
                if given.out:
                    given.out.parent.mkdir(parents=True, exist_ok=True)
                    pandas.DataFrame(rows).to_csv(given.out, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
