"""The shape of a model, and the presets.

Notable: one frozen dataclass is all that the model, the estimates, the trainer, the engine and the checkpoints know of a model's shape; every preset is
a published shape or says what it is for; a shape that cannot be is refused here, by the name of the field.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from labkernels.errors import ArgumentError
from labkernels.rope import rope_frequencies

ACTIVATIONS = ("swiglu", "gelu", "gelu_tanh")


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder: RMSNorm, grouped-query attention with RoPE, a feed-forward network, no biases. Raises ArgumentError that names the field."""

    vocab_size: int  # tokens; the rows of the embedding and of the head
    embed_dim: int  # width of the residual stream
    num_layers: int  # blocks of attention and FFN
    num_heads: int  # of queries
    num_kv_heads: int  # of keys and values; divides num_heads
    ffn_dim: int  # between the products of the FFN; of gate and of up each
    head_dim: int | None = None  # embed_dim / num_heads unless given
    activation: str = "swiglu"  # silu(gate) * up; or "gelu" (by erf), "gelu_tanh", with one product before it
    max_seq_len: int = 2048  # positions that the model is meant for; RoPE itself has no end
    rope_theta: float = 10_000.0  # base of RoPE's frequencies
    rope_scaling: dict[str, Any] | None = field(default=None, hash=False)  # Hugging Face's: {"rope_type": "llama3", "factor": 32.0, ...}
    norm_eps: float = 1e-5  # of every RMSNorm
    qk_norm: bool = False  # RMSNorm of each head of queries and keys before RoPE, as Qwen3 has it
    tie_embeddings: bool = True  # the head is the embedding's table

    def __post_init__(self):
        for name in ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim", "max_seq_len"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"ModelConfig: {name} is {value!r}; it must be an int of at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ArgumentError(f"ModelConfig: num_heads is {self.num_heads}; it must be a multiple of num_kv_heads, {self.num_kv_heads}")
        if self.head_dim is None:
            if self.embed_dim % self.num_heads:
                raise ArgumentError(f"ModelConfig: embed_dim is {self.embed_dim}, no multiple of num_heads, {self.num_heads}; give head_dim")
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        if isinstance(self.head_dim, bool) or not isinstance(self.head_dim, int) or self.head_dim < 2 or self.head_dim % 2:
            raise ArgumentError(f"ModelConfig: head_dim is {self.head_dim!r}; it must be an even int of at least 2, for RoPE turns pairs")
        if self.activation not in ACTIVATIONS:
            raise ArgumentError(f"ModelConfig: activation is {self.activation!r}; it must be one of {', '.join(map(repr, ACTIVATIONS))}")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ArgumentError(f"ModelConfig: {name} is {value!r}; it must be a positive number")
        for name in ("qk_norm", "tie_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"ModelConfig: {name} is {getattr(self, name)!r}; it must be True or False")
        rope_frequencies(self.head_dim, self.rope_theta, self.rope_scaling)  # refuses a scaling that it does not know

    @property
    def gated(self) -> bool:
        """Has the FFN a gate beside its up projection?"""
        return self.activation == "swiglu"

    @property
    def qkv_dim(self) -> int:
        """Rows of the stacked projection to queries, keys and values."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ModelConfig:
        """PRESETS[name], with `changes` to single fields: `ModelConfig.preset("645m", num_layers=2)`."""
        if name not in PRESETS:
            raise ArgumentError(f"ModelConfig.preset: name is {name!r}; it must be one of {', '.join(map(repr, PRESETS))}")
        known = [each.name for each in fields(cls)]
        for changed in changes:
            if changed not in known:
                raise ArgumentError(f"ModelConfig.preset: there is no field {changed!r}; there are {', '.join(known)}")
        return replace(PRESETS[name], **changes)


_LLAMA_31 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_LLAMA_32 = {
    "vocab_size": 128_256, "ffn_dim": 8192, "max_seq_len": 131_072, "rope_theta": 500_000.0, "rope_scaling": _LLAMA_31 | {"factor": 32.0},
}  # fmt: skip
_LLAMA_3 = {"vocab_size": 128_256, "max_seq_len": 8192, "rope_theta": 500_000.0, "tie_embeddings": False}
_LLAMA_2 = {"vocab_size": 32_000, "max_seq_len": 4096, "tie_embeddings": False}

PRESETS: dict[str, ModelConfig] = {
    # for the CPU: learns to write in a minute
    "10m": ModelConfig(vocab_size=8192, embed_dim=384, num_layers=4, num_heads=6, num_kv_heads=2, ffn_dim=1152, max_seq_len=512),
    # what training is measured on: 24 query heads of 64, 6 of keys and values
    "645m": ModelConfig(vocab_size=32_768, embed_dim=1536, num_layers=24, num_heads=24, num_kv_heads=6, ffn_dim=4096),
    "730m": ModelConfig(vocab_size=50_304, embed_dim=1536, num_layers=24, num_heads=24, num_kv_heads=6, ffn_dim=4608),
    # shapes of Meta's
    "llama-3.2-1b": ModelConfig(embed_dim=2048, num_layers=16, num_heads=32, num_kv_heads=8, **_LLAMA_32),
    "llama-3.2-3b": ModelConfig(embed_dim=3072, num_layers=28, num_heads=24, num_kv_heads=8, **_LLAMA_32),
    "llama-2-7b": ModelConfig(embed_dim=4096, num_layers=32, num_heads=32, num_kv_heads=32, ffn_dim=11_008, **_LLAMA_2),
    "llama-2-13b": ModelConfig(embed_dim=5120, num_layers=40, num_heads=40, num_kv_heads=40, ffn_dim=13_824, **_LLAMA_2),
    "llama-3-8b": ModelConfig(embed_dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, ffn_dim=14_336, **_LLAMA_3),
    "llama-3-70b": ModelConfig(embed_dim=8192, num_layers=80, num_heads=64, num_kv_heads=8, ffn_dim=28_672, **_LLAMA_3),
}
