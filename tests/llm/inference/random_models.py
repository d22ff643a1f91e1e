"""Small models of random weights, and what engines make of the same tokens."""

import torch

from labkernels.llm.config import ModelConfig
from labkernels.llm.inference.engine import Engine
from labkernels.llm.model import Transformer

CONFIG = ModelConfig(80, 64, 2, 4, 2, 96, head_dim=64, max_seq_len=128)


def random_model(config=CONFIG, dtype=torch.bfloat16, seed=0, std=0.2, device="cpu") -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(config, dtype=dtype, device=device).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
        elif name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def prompts_of(*lengths, vocab=80) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in lengths]


def logits_of(engine: Engine, prompts: list[list[int]], forced: int = 3) -> torch.Tensor:
    """Logits after each prompt, and after each of a few tokens more, the same in every engine: (1 + forced, prompts, vocab)."""
    cache, sequences = engine.cache, []
    for prompt in prompts:
        sequences.append(cache.add(())[0])
    step = cache.step(dict(zip(sequences, prompts)))
    ends = (step.cu_seqlens_q[1:] - 1).tolist()
    rows = [engine.runner.prefill(torch.tensor(sum(prompts, []), device=engine.device), step, ends).clone()]
    for i in range(forced):
        tokens = [(7 * i + 3 * n + 1) % engine.config.vocab_size for n in range(len(prompts))]
        step = cache.step({sequence: [token] for sequence, token in zip(sequences, tokens)})
        rows.append(engine.runner.decode(torch.tensor(tokens, device=engine.device), step).clone())
    for sequence in sequences:
        cache.finish(sequence)
    return torch.stack(rows)


def assert_as_good(found: torch.Tensor, wanted: torch.Tensor, share: float):
    assert torch.isfinite(found).all()
    assert (found - wanted).abs().max() < share * wanted.abs().max()
