"""`labkernels bench --model`: how fast a model answers here, by the engine as it is."""

from __future__ import annotations

import statistics

from labkernels.cli.options import Choices


def measure(model: str, choices: Choices, prompt_tokens: int, new_tokens: int, runs: int = 3) -> dict:
    """Tokens a second of `batch_size` answers at a time, and the time to the first: the median of `runs` after one that warms up.

    `model` is a folder, or a preset's name, which gets random weights. Prompts are random tokens, and no end token is looked for.
    """
    import torch
    from tqdm import tqdm

    from labkernels.cli.loading import check_memory, describe, load_engine, loading
    from labkernels.errors import ArgumentError
    from labkernels.llm.inference.bench_engine import random_model
    from labkernels.llm.config import PRESETS
    from labkernels.llm.inference.engine import Engine
    from labkernels.llm.quantisation.quantized import described_scheme

    config = describe(model)[0]
    if prompt_tokens + new_tokens > config.max_seq_len:
        raise ArgumentError(
            f"--prompt-tokens {prompt_tokens} and --new-tokens {new_tokens} are more than the {config.max_seq_len} that {model} takes"
        )
    if model in PRESETS:
        check_memory(model, choices)
        with loading(model, choices):
            on = choices.device or ("cuda" if choices.on_gpu else "cpu")
            made = random_model(config, torch.bfloat16 if choices.on_gpu else torch.float32, on, choices.scheme)
        engine = Engine(made, None, **choices.engine_options())
    else:
        engine = load_engine(model, choices, text=False)
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in tqdm(range(runs + 1), desc="runs", leave=False, disable=None):
        prompts = torch.randint(0, config.vocab_size, (choices.batch_size, prompt_tokens), generator=generator).tolist()
        answers = engine.generate(prompts, new_tokens, ignore_eos=True)
        if number:
            first, whole = max(a.first_token_s for a in answers), max(a.seconds for a in answers)
            found.append((first, whole, sum(len(a.tokens) - 1 for a in answers) / max(whole - first, 1e-9)))
    first, whole, rate = (statistics.median(column) for column in zip(*found))
    where = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else "CPU"
    return {
        "model": model, "device": where, "weights": choices.scheme or described_scheme(model) or str(engine.dtype).removeprefix("torch."),
        "runner": type(engine.runner).__name__, "batch_size": choices.batch_size, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens,
        "first_token_ms": 1e3 * first, "seconds": whole,
        "tokens_per_s": rate,
    }  # fmt: skip
