"""Drawing the next token from logits: greedy, temperature, top-k, top-p, min-p, repetition penalty."""

import torch


def sample_tokens(
    logits: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    top_k: int | torch.Tensor = 0,
    top_p: float | torch.Tensor = 1.0,
    min_p: float | torch.Tensor = 0.0,
    repetition_penalty: float | torch.Tensor = 1.0,
    previous: torch.Tensor | None = None,
    seed: int | torch.Tensor = 0,
    position: int | torch.Tensor = 0,
    return_logprobs: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """One token for each row of logits, drawn by the fastest variant that accepts the inputs.

    logits (rows, vocab) float32, bfloat16 or float16. Each setting is one number for all rows or a tensor (rows,). They apply in this order,
    as in Hugging Face transformers:

        repetition_penalty   divides the logits above 0 of the tokens in `previous`, and multiplies those below: (rows, n) token ids, where
                             ids below 0 fill up shorter rows, or a bool mask (rows, vocab)
        temperature          divides the logits; 0 is greedy: the largest logit, of equal ones the lowest token
        top_k                keeps the tokens than which fewer than top_k are larger; 0 keeps all
        top_p                keeps the fewest of what is left, largest first, whose probabilities add up to top_p; 1 keeps all
        min_p                keeps those with at least min_p times the largest probability

    Tokens of equal logits stay or go together. A logit of -inf is never drawn.

    A draw depends on its row's logits and settings, on `seed` (64 bits) and on `position`, which counts the draws from a seed, and on nothing
    else in the batch. One seed for all is the first row's; row r has seed + r.

    Returns the tokens (rows,) int64; with `return_logprobs` also the logarithm of each token's probability under softmax(logits / temperature)
    (1 where greedy), after the penalty and before anything was left out, (rows,) float32. A row that has no distribution, with NaN or inf in
    it or nothing but -inf, gets token -1 and NaN. Settings in tensors are not looked at, so that a GPU need not be waited for and CUDA graphs
    can be captured. Raises ArgumentError that names the wrong input. Under torch.compile this is `torch.ops.labkernels.sample_tokens`.
    """
    import labkernels.torch_extension.sampling  # noqa: F401  defines the operator
    from labkernels.sampling.sample_tokens_op import problem, run

    settings = (temperature, top_k, top_p, min_p, repetition_penalty, previous, seed, position)
    if torch.compiler.is_compiling():
        found = labkernels.torch_extension.sampling.call(logits, *settings)
        return found if return_logprobs else found[0]
    return run(logits, *settings, return_logprobs)
