"""What a model costs, in closed form: parameters, FLOPs, and bytes of memory for training and for inference.

Notable: parameters are exact. FLOPs are those that the formula needs, as MFU counts them: twice the weights of every matrix that a token is multiplied
by, attention only over the keys that a query sees, three times as much with the backward pass, and nothing for what is computed twice. Memory is that of
tensors, without what the allocator rounds up, CUDA's own (some 500 MB) and, in training, cuBLAS's workspaces (some 30 MB); activations are those that
autograd keeps in eager mode. torch.compile keeps less, for it computes cheap ones again. An engine's peak is within 5% (tests/llm/test_estimate.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.errors import ArgumentError
from labkernels.llm.config import ModelConfig
from labkernels.llm.kernels import chunk_tokens, resolve
from labkernels.llm.recompute import expect_mode
from labkernels.quant.formats import FOUR_BIT, SCHEMES, padded_columns

OPTIMIZER_STATES = {"sgd": (0, 0), "adamw": (2, 2), "muon": (1, 2)}  # numbers for each of a block's matrices' elements, and of all others'
FLOAT32 = 4  # bytes
CUBLAS_WORKSPACE = 32 * 2**20  # bytes that PyTorch gives cuBLAS on a Hopper, for each stream
ENGINE_STREAMS = 2  # on which an engine computes: that of its caller, and that of its graphs
GATED_FROM, MARGIN = 32, 512  # as in inference/prompts.py and kvcache/prefill.py


class Memory(dict):
    """Bytes by part; `peak` is the most that is there at a time."""

    def __init__(self, parts: Mapping[str, int], peak: int):
        super().__init__(parts)
        self.peak = peak

    def __str__(self) -> str:
        rows = [*self.items(), ("peak", self.peak)]
        return "\n".join(f"{name:<12}{value / 1e9:9.3f} GB" for name, value in rows)


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """The number of parameters by part."""
    c, q = config, config.num_heads * config.head_dim
    norms = c.num_layers * (2 * c.embed_dim + (2 * c.head_dim if c.qk_norm else 0)) + c.embed_dim
    return {
        "embedding": c.vocab_size * c.embed_dim,
        "attention": c.num_layers * (c.qkv_dim + q) * c.embed_dim,
        "ffn": c.num_layers * (3 if c.gated else 2) * c.ffn_dim * c.embed_dim,
        "norms": norms,
        "head": 0 if c.tie_embeddings else c.vocab_size * c.embed_dim,
    }


def parameters(config: ModelConfig) -> int:
    """The number of parameters; a tied head is counted once."""
    return sum(parameter_table(config).values())


def flops_per_token(config: ModelConfig, seq_len: int, training: bool = True) -> float:
    """FLOPs for one token of sequences of seq_len, on average; with the backward pass if `training`."""
    return sum(flop_table(config, seq_len, training).values())


def flop_table(config: ModelConfig, seq_len: int, training: bool = True) -> dict[str, float]:
    """The same by part: the products with weights, the scores and sums of attention, the head."""
    table, passes = parameter_table(config), 3 if training else 1
    keys = (seq_len + 1) / 2  # that a query sees, on average
    scores = 2 * 2 * keys * config.num_heads * config.head_dim * config.num_layers
    head = 2 * config.vocab_size * config.embed_dim
    counted = {"projections": 2 * table["attention"], "scores": scores, "ffn": 2 * table["ffn"], "head": head}
    return {name: float(passes * flops) for name, flops in counted.items()}


def training_memory(
    config: ModelConfig,
    batch: int,
    seq_len: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    kernels: str | Mapping[str, str] = "labkernels",
    checkpointing: str = "none",
    optimizer: str = "adamw",
    state_dtype: torch.dtype = torch.float32,
    master_weights: bool = True,
    accumulate: bool = False,
) -> Memory:
    """Bytes of a training step of batch sequences of seq_len tokens.

    Parts: weights and gradients in `dtype`; master, float32 copies of the weights, if wanted and dtype is not float32; the optimizer's states in
    `state_dtype`; activations, what autograd keeps; loss, the most that the head and the loss have besides; workspace, what a block's backward pass makes. With
    `accumulate` the gradients are kept from one backward pass to the next, and stand beside all activations; else they grow as activations go, and the peak
    is where the backward pass begins, at the last block, the head's gradient made, or where it ends, at the first block, all other gradients made.
    `kernels`: the model's operations, and of what TrainConfig has beside them "activation" and "attention forward".
    """
    if optimizer not in OPTIMIZER_STATES:
        raise ArgumentError(f"training_memory: optimizer is {optimizer!r}; it must be one of {', '.join(map(repr, OPTIMIZER_STATES))}")
    count, table, tokens = parameters(config), parameter_table(config), batch * seq_len
    in_matrices, others = OPTIMIZER_STATES[optimizer]
    matrices = table["attention"] + table["ffn"]
    kernels, size = with_extras(kernels), dtype.itemsize
    kept, block = activation_bytes(config, tokens, dtype, kernels, checkpointing), block_bytes(config, tokens, dtype, kernels)
    again = {"none": 0, "selective": max(0, block - product_bytes(config, tokens, dtype, kernels)), "full": block}[checkpointing]
    parts = {
        "weights": count * size,
        "master": count * FLOAT32 if master_weights and dtype != torch.float32 else 0,
        "optimizer": (in_matrices * matrices + others * (count - matrices)) * state_dtype.itemsize,
        "gradients": count * size,
        "activations": kept,
        "loss": loss_bytes(config, tokens, dtype, kernels),
        "workspace": again + backward_bytes(config, tokens, dtype),
    }
    head = config.vocab_size * config.embed_dim * size
    first = kept + max(parts["loss"], head + parts["workspace"])
    last = parts["gradients"] - (0 if config.tie_embeddings else head) + kept // config.num_layers + parts["workspace"]
    always = parts["weights"] + parts["master"] + parts["optimizer"]
    return Memory(parts, always + (parts["gradients"] + first if accumulate else max(first, last)))


def with_extras(kernels: str | Mapping[str, str]) -> dict[str, str]:
    """What each operation runs on, and what the trainer has beside the model's operations (labkernels.llm.training.train_parts)."""
    extras = {} if isinstance(kernels, str) else {name: kernels[name] for name in ("activation", "attention forward") if name in kernels}
    return resolve(kernels if isinstance(kernels, str) else {name: choice for name, choice in kernels.items() if name not in extras}) | extras


def activation_bytes(config: ModelConfig, tokens: int, dtype: torch.dtype, kernels: Mapping[str, str], checkpointing: str = "none") -> int:
    """What autograd keeps from the forward pass for the backward pass, without the loss."""
    c, size, last = config, dtype.itemsize, 2 * config.embed_dim  # of the last norm: the stream and its norm
    last += 0 if kernels["loss"] == "torch" else -c.embed_dim  # the loss has its gradient already, and needs no input
    rstd = FLOAT32 if kernels["norm"] == "torch" else 0
    ends = tokens * (last * size + rstd)
    if expect_mode(checkpointing) == "none":
        return c.num_layers * block_bytes(c, tokens, dtype, kernels) + ends
    if checkpointing == "full":
        return c.num_layers * tokens * c.embed_dim * size + ends
    return c.num_layers * (product_bytes(c, tokens, dtype, kernels) + tokens * c.embed_dim * size) + ends


def product_bytes(config: ModelConfig, tokens: int, dtype: torch.dtype, kernels: Mapping[str, str]) -> int:
    """What one block keeps with selective checkpointing, beside the stream before it: the results of products and of attention."""
    c, q = config, config.num_heads * config.head_dim
    elements = c.qkv_dim + q + c.embed_dim + (2 if c.gated else 1) * c.ffn_dim + c.embed_dim
    turned = fused(c, kernels) and not turned_in_place(c, kernels)
    elements += q + c.num_kv_heads * c.head_dim if turned else 0  # q and k, turned: one operator's results with the others
    return tokens * (elements * dtype.itemsize + FLOAT32 * c.num_heads)


def fused(config: ModelConfig, kernels: Mapping[str, str]) -> bool:
    """Are rotation and attention one operator? (labkernels.llm.rope_attention)"""
    return kernels["rope"] == kernels["attention"] == "labkernels" and not config.qk_norm


def turned_in_place(config: ModelConfig, kernels: Mapping[str, str]) -> bool:
    """Are queries and keys there once, turned? (labkernels.llm.training.packed_attention)"""
    told = kernels.get("activation") in ("fused", "kept") or kernels.get("attention forward") == "cudnn"
    return told and fused(config, kernels) and kernels["linear"] == "torch"


def block_bytes(config: ModelConfig, tokens: int, dtype: torch.dtype, kernels: Mapping[str, str]) -> int:
    """What one block keeps without checkpointing."""
    c, q, kv = config, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    elements = 4 * c.embed_dim  # the stream and its norm, twice
    elements += c.qkv_dim + q  # the projections; the result
    elements += 0 if turned_in_place(c, kernels) else q + kv  # q and k, turned
    if kernels["attention"] == "labkernels" and dtype == torch.float32 and not fused(config, kernels):
        elements += q  # whose heads are joined in a copy
    others = FLOAT32 * c.num_heads  # log-sum-exps
    packed = c.activation == "swiglu" and kernels.get("activation", "torch") != "torch"  # labkernels.llm.training.packed_swiglu
    if kernels["ffn"] == "labkernels" or packed:
        elements += (2 if c.gated else 1) * c.ffn_dim + (c.ffn_dim if packed and kernels["activation"] == "kept" else 0)
    else:
        elements += (4 if c.gated else 2) * c.ffn_dim  # gate and up, silu(gate), what down_proj multiplies
    if kernels["norm"] == "torch":
        others += 2 * FLOAT32 + (FLOAT32 * (c.num_heads + c.num_kv_heads) if c.qk_norm else 0)
    return tokens * (elements * dtype.itemsize + others)


def loss_bytes(config: ModelConfig, tokens: int, dtype: torch.dtype, kernels: Mapping[str, str]) -> int:
    """The most that the head and the loss have at a time."""
    if kernels["loss"] == "torch":
        return tokens * config.vocab_size * 3 * FLOAT32  # the log-softmax in float32, its gradient, and that of the logits
    chunk = min(chunk_tokens(config.vocab_size, dtype), tokens) * config.vocab_size
    return (chunk + (tokens + config.vocab_size) * config.embed_dim) * dtype.itemsize  # a chunk's logits; the gradients, made at once


def backward_bytes(config: ModelConfig, tokens: int, dtype: torch.dtype) -> int:
    """What the backward pass of one block's FFN has at a time: gradients of the stream and of the hidden layer, and that layer again."""
    return tokens * (2 * config.embed_dim + (4 if config.gated else 3) * config.ffn_dim) * dtype.itemsize


def inference_memory(
    config: ModelConfig,
    batch: int,
    seq_len: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    quantize: str | None = None,
    head: str | None = None,
    group_size: int = 128,
    cache_dtype: torch.dtype | None = None,
    prefill_tokens: int = 4096,
    on_gpu: bool = True,
) -> Memory:
    """Bytes of an engine that generates with `batch` sequences of up to seq_len tokens in the cache.

    Parts: weights, those of the blocks' matrices as `quantize` says (None, or a scheme of QuantLinear), and a copy of the head as `head` says, beside
    the embedding; the cache of keys and values; RoPE's table; prompts: the most that a pass over prefill_tokens of them has at a time; decode: a row of
    every buffer for each sequence, or for the next power of two; workspace: on a GPU, cuBLAS's, of the two streams on which an engine computes.
    """
    c, table = config, parameter_table(config)
    cache = 2 * c.num_layers * c.num_kv_heads * batch * seq_len * cache_bytes(c.head_dim, cache_dtype or dtype)
    outside = table["embedding"] + table["head"] + table["norms"]
    q = c.num_heads * c.head_dim
    shapes = [(c.qkv_dim, c.embed_dim), (c.embed_dim, q), ((2 if c.gated else 1) * c.ffn_dim, c.embed_dim), (c.embed_dim, c.ffn_dim)]
    inside = c.num_layers * sum(weight_bytes(rows, columns, dtype, quantize, group_size) for rows, columns in shapes)
    of_head = weight_bytes(c.vocab_size, c.embed_dim, dtype, head, group_size) - (0 if c.tie_embeddings else table["head"] * dtype.itemsize) if head else 0
    rows = 1 << (batch - 1).bit_length()
    parts = {
        "weights": inside + outside * dtype.itemsize + of_head,
        "cache": cache,
        "rope": c.max_seq_len * c.head_dim * FLOAT32,
        "prompts": prompt_bytes(c, batch, seq_len, min(prefill_tokens, batch * seq_len), dtype, quantize, cache_dtype),
        "decode": rows * ((c.embed_dim + q + c.ffn_dim) * dtype.itemsize + c.vocab_size * FLOAT32),
        "workspace": ENGINE_STREAMS * CUBLAS_WORKSPACE if on_gpu else 0,
    }
    return Memory(parts, sum(parts.values()))


def prompt_bytes(
    config: ModelConfig, batch: int, seq_len: int, tokens: int, dtype: torch.dtype, quantize: str | None = None, cache_dtype: torch.dtype | None = None
) -> int:
    """The most that a pass over so many tokens of prompts has at a time (inference/prompts.py): in the feed-forward network, or in attention.

    16-bit weights have SwiGLU in the epilogue of their first product, and no gates and ups in memory. Attention of a pass that goes on from a past, as
    chunks do, or that reads what the cache rounded, packs a layer's keys and values first; two sequences at a time are counted.
    """
    c, q = config, config.num_heads * config.head_dim
    first = 0 if quantize is None and c.gated and tokens >= GATED_FROM else (2 if c.gated else 1) * c.ffn_dim  # what the first product leaves beside
    packs = tokens < batch * seq_len or cache_dtype not in (None, dtype)
    packed = 2 * (min(batch, 2) * seq_len + MARGIN) * c.num_kv_heads * c.head_dim if packs else 0
    network = tokens * (c.qkv_dim + q + 3 * c.embed_dim + c.ffn_dim + max(first, c.embed_dim))
    attention = tokens * (c.qkv_dim + 2 * q + 3 * c.embed_dim) + packed
    return max(network, attention) * dtype.itemsize + batch * c.vocab_size * (dtype.itemsize + FLOAT32)


def weight_bytes(rows: int, columns: int, dtype: torch.dtype, quantize: str | None = None, group_size: int = 128) -> int:
    """Bytes of a weight (rows, columns), or of the quantised one with its scales, and int4's zeros."""
    if quantize is None:
        return rows * columns * dtype.itemsize
    if quantize not in SCHEMES:
        raise ArgumentError(f"weight_bytes: quantize is {quantize!r}; it must be None or one of {', '.join(map(repr, SCHEMES))}")
    stored = padded_columns(columns, quantize, group_size)
    if quantize not in FOUR_BIT:
        return rows * stored + rows * FLOAT32
    return rows * stored // 2 + rows * (stored // group_size) * (4 if quantize == "int4" else 2) + (0 if quantize == "int4" else 16 * FLOAT32)


def cache_bytes(head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one key or value in the cache; those of 8 bits have a float32 scale each."""
    return head_dim * dtype.itemsize + (FLOAT32 if dtype.itemsize == 1 else 0)
