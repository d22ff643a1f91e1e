"""The engine, v3: fused. This package's kernels, buffers allocated once: five launches a layer for up to eight sequences.

    Idea      [norm, q k v, RoPE, cache] [attention] [projection, residual] [norm, gates and ups, SwiGLU] [projection, residual]: what stands between
              two products goes into one of them (labkernels/gemv, decode/qkv.cu). The residual stream is one buffer, written in place.
              A cache of 8 bits takes a launch of its own: RoPE, and bytes with their scales (rope/v3_qkv_cache_bytes.cu).
    Predicts  Llama-3.2-1B: 16 * 5 + 4 launches a token for v2's 878, and nothing but weights, keys and values from memory.
    Measured  data/measured/h200/engine.csv: 90 launches, 108 tokens/s for v2's 15. A cache of 8 bits: 98 for 82 in v6.
    Wastes    Python starts each kernel, in 100 us, while the kernel takes 3: the GPU waits. v4 starts all of them at once.

More than SAME_BITS sequences go through other products (several.py), with norms as launches of their own; so do prompts (prompts.py), packed without
padding. On CPU tensors the same kernels run in the emulator; cuBLAS is PyTorch there.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch.nn import functional as F

from labkernels import functional as lk
from labkernels.cuda.variants import ceil_div, kernel
from labkernels.gemv.variants import TABLE_BYTES, Stored, blocks_of, format_of, launch_stream, quantised_refusal, sizes, stream_for, streamed
from labkernels.kvcache.caches import Step
from labkernels.kvcache.tensor_cores import CLUSTERS, MAX_CLUSTER, _key, accepts_cluster, clustered, stored_type
from labkernels.llm.inference.cache import EngineCache
from labkernels.llm.inference.cached import refuse
from labkernels.llm.inference.decode_state import DecodeState
from labkernels.llm.inference.prompts import Prompts
from labkernels.llm.inference.several import Several
from labkernels.nn import QuantLinear
from labkernels.rope.qkv_rope_cache_variants import bytes_written

FOLDER = Path(__file__).parent / "decode"
MOST_NARROW = 16  # sequences for which the head's product is gemv's; above, cuBLAS's is as fast
SAME_BITS = 8  # sequences up to which a row's bits do not depend on how many there are
FEW_BLOCKS, SHORT_ROOM = 4, 2048  # of a head in decode attention, up to so many tokens: with eight a step of four sequences took 0.05 ms longer
FIRST_REACH = 1024  # tokens of the smallest block table; the next ones reach four times as far each


class FusedRunner(Prompts, Several):
    """Needs SwiGLU, no QK-norm, and a head_dim of a multiple of 16."""

    name, lookahead, early, folder = "fused", 1, False, FOLDER

    def __init__(self, model, cache: EngineCache, max_batch: int = 8, max_seq_len: int | None = None, **_):
        refuse(self.name, self.refusal(model, cache))
        self.model, self.cache, self.config = model, cache, model.config
        self.device, self.dtype = model.embedding.weight.device, model.embedding.weight.dtype
        self.max_batch, self.max_seq_len = max_batch, max_seq_len or model.config.max_seq_len
        self._made: dict[tuple, dict[str, torch.Tensor] | DecodeState | torch.Tensor] = {}
        self.streams = self.dtype != torch.float32 and all(self._streams(layer.weight) for block in model.blocks for layer in _linears(block))
        self.streams_head = self._streams(model.head_weight)

    @staticmethod
    def refusal(model, cache) -> str | None:
        """Why this rung cannot run, or None."""
        c = model.config
        if not c.gated or c.qk_norm:
            return "takes models with SwiGLU and without QK-norm"
        if c.head_dim % 16 or c.head_dim > 256:
            return f"takes a head_dim of a multiple of 16, at most 256; this model has {c.head_dim}"
        device = model.embedding.weight.device
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
            return f"is made for Hopper, this GPU is {torch.cuda.get_device_name(device)}"
        return None

    # Decode

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, step: Step) -> torch.Tensor:
        rows, pages = len(step.sequences), self.cache.pages
        state = self._state(rows, self._reach(max(map(pages.length, step.sequences))))
        state.fill([(token, pages.length(s) - 1, pages.pages(s)) for token, s in zip(tokens.tolist(), step.sequences)])
        return self._step(state)

    def _reach(self, longest: int) -> int:
        """Tokens of the block table in which a sequence of `longest` fits; of few sizes, as attention is launched for what the table could hold."""
        reach = FIRST_REACH
        while reach < longest:
            reach *= 4
        return min(reach, self.max_seq_len)

    def _state(self, rows: int, reach: int) -> DecodeState:
        """Made when first asked for, as are buffers."""
        if (rows, reach) not in self._made:
            page_size = self.cache.pages.page_size
            self._made[rows, reach] = DecodeState(rows, -(-reach // page_size), self.lookahead, page_size, self.config.head_dim, self.device)
        return self._made[rows, reach]

    def _buffers(self, rows: int) -> dict[str, torch.Tensor]:
        if (rows,) not in self._made:
            self._made[rows,] = self._allocate(rows)
        return self._made[rows,]

    def _allocate(self, rows: int) -> dict[str, torch.Tensor]:
        c = self.config
        shapes = {"hidden": c.embed_dim, "q": c.num_heads * c.head_dim, "gated": c.ffn_dim}
        if self.cache.k.dtype != self.dtype and (self._is_narrow(rows) or self._is_few(rows)):
            shapes["qkv"] = c.qkv_dim
        made = {name: torch.zeros(rows, columns, dtype=self.dtype, device=self.device) for name, columns in shapes.items()}
        return made | {"logits": torch.zeros(rows, c.vocab_size, dtype=torch.float32, device=self.device)}

    def _step(self, state: DecodeState, bests: torch.Tensor | None = None) -> torch.Tensor | None:
        """A token of each sequence of `state`, which is updated, to float32 logits (rows, vocab), in a buffer that the next step overwrites; or to
        candidates for the likeliest tokens, if there are `bests` to put them into."""
        self._begin(state, bests)
        if self._is_narrow(state.rows):
            return self._narrow(state, self._buffers(state.rows), bests)
        return self._several(state, bests)

    def _is_narrow(self, rows: int) -> bool:
        return self.streams and rows <= SAME_BITS

    def _begin(self, state: DecodeState, bests: torch.Tensor | None) -> None:
        begin = kernel(FOLDER / "begin.cu", "begin_step", self.dtype)
        args = state.begin(self.model.embedding.weight, self._buffers(state.rows)["hidden"], self.model.angles, bests)
        self._launch(begin, (state.rows, 1, 1), (256, 1, 1), args, 0, None)

    def _narrow(self, state: DecodeState, buffers: dict[str, torch.Tensor], bests: torch.Tensor | None) -> torch.Tensor | None:
        model, hidden, eps = self.model, buffers["hidden"], self.config.norm_eps
        for index, block in enumerate(model.blocks):
            q = self._project(index, block, hidden, buffers["q"], state)  # (rows, heads, head_dim)
            mixed = self._attend(index, q, state)
            self._gemv(mixed.flatten(1), block.attention.out_proj.weight, residual=hidden, out=hidden)
            self._gemv(hidden, block.ffn.gate_up_proj.weight, block.ffn_norm.weight, activation="swiglu", eps=eps, out=buffers["gated"])
            self._gemv(buffers["gated"], block.ffn.down_proj.weight, residual=hidden, out=hidden)
        if bests is not None:
            return self._likeliest(hidden, bests)
        if not self.streams_head:  # it may be quantised to another scheme, whose groups embed_dim does not fill
            return self._head(lk.rms_norm(hidden, model.norm.weight, eps))
        return self._gemv(hidden, model.head_weight, model.norm.weight, eps=eps, out=buffers["logits"])

    def _bests(self, rows: int) -> torch.Tensor | None:
        """Room for the candidates (rows, blocks, 2) for the likeliest tokens, if they can be found without drawing: by the head, or in its logits."""
        narrow, streams = self._is_narrow(rows), self._head_streams(rows)
        if narrow and not streams:
            return None
        candidates = self._candidates()
        if streams:
            stored = Stored.of(self.model.head_weight)
            config = stream_for(self.device, rows, stored, narrow)
            if rows > 4 * config.share:
                return None
            candidates = blocks_of(config, self.device, ceil_div(stored.n, 16))
        if ("bests", rows) not in self._made:
            self._made["bests", rows] = torch.zeros(rows, candidates, 2, dtype=torch.int32, device=self.device)
        return self._made["bests", rows]

    def _head_streams(self, rows: int) -> bool:
        """Does the head find the likeliest tokens of so many sequences on its way? Its logits of up to 16 have 32 bits, here as where they are wanted."""
        few = rows <= MOST_NARROW and self.dtype != torch.float32 and isinstance(self.model.head_weight, torch.Tensor)
        return self.streams_head and (self._is_narrow(rows) or few)

    def _likeliest(self, hidden: torch.Tensor, bests: torch.Tensor, normed: bool = False) -> None:
        weight, rows, stored = self.model.head_weight, len(hidden), Stored.of(self.model.head_weight)
        config, tiles, norm = stream_for(self.device, rows, stored, not normed), ceil_div(stored.n, 16), "false" if normed else "true"
        run = kernel(FOLDER / "head.cu", "head_stream", format_of(weight, self.dtype, rows), norm, stored.column_tiles(rows), *config.template)
        packed = sizes(config, rows, stored, tiles, self.config.norm_eps, hidden.stride(0))
        args = (hidden, *_tensors(weight), self.model.norm.weight, bests, packed, TABLE_BYTES * stored.table)
        launch_stream(run, config, self.device, tiles, args, config.shared_mem(rows, stored, not normed), self.early)

    def _gemv(self, x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out=None) -> torch.Tensor:
        config = stream_for(self.device, len(x), Stored.of(w), norm_weight is not None)
        return streamed(config, x, w, norm_weight, residual, activation, eps, None, out, early=self.early)

    def _project(self, index: int, block, hidden, q: torch.Tensor, state: DecodeState, normed: bool = False) -> torch.Tensor:
        """Queries, turned; keys and values go into the cache. `normed`: hidden is what the projection multiplies, else its norm."""
        c, attention = self.config, block.attention
        k_cache, v_cache, _, _ = self.cache.layer(index)
        if k_cache.dtype != self.dtype:
            norm, out = None if normed else block.attention_norm.weight, self._buffers(state.rows)["qkv"]
            qkv = self._gemv(hidden, attention.qkv_proj.weight, norm, eps=c.norm_eps, out=out)
            return self._turn_and_write(index, qkv, None, state.slots, state.turns, q.view(len(q), -1, c.head_dim))
        rows, weight = len(hidden), attention.qkv_proj.weight
        stored = Stored.of(weight)
        config, tiles, norm = stream_for(self.device, rows, stored, not normed), stored.n // 16, "false" if normed else "true"
        run = kernel(FOLDER / "qkv.cu", "qkv_stream", format_of(weight, self.dtype, rows), norm, stored.column_tiles(rows), *config.template)
        page, head, slot, _ = k_cache.stride()
        places = struct.pack("<3q3iI", page, head, slot, c.num_heads, c.num_kv_heads, c.head_dim, ceil_div(1 << 18, c.head_dim // 16))
        args = (
            hidden, *_tensors(weight), block.attention_norm.weight, q, k_cache, v_cache, state.turns, state.spots, places,
            sizes(config, rows, stored, tiles, c.norm_eps, hidden.stride(0)), TABLE_BYTES * stored.table,
        )  # fmt: skip
        launch_stream(run, config, self.device, tiles, args, config.shared_mem(rows, stored, not normed), self.early)
        return q.view(rows, c.num_heads, c.head_dim)

    def _attend(self, index: int, q: torch.Tensor, state: DecodeState) -> torch.Tensor:
        k, v, k_scale, v_scale = self.cache.layer(index)
        given = (q, k, v, state.lengths, state.block_table)
        room, blocks, of_many = state.width * state.page_size, None, None
        if state.rows <= SAME_BITS:  # so many, whoever else is there
            blocks = FEW_BLOCKS if room <= SHORT_ROOM else MAX_CLUSTER
        elif self.early:
            of_many = self._tiling_of_many(q, k, room)
        if not self.early or of_many is None and accepts_cluster(*given, k_scale=k_scale, v_scale=v_scale) is not None:
            return lk.decode_attention(*given, k_scale=k_scale, v_scale=v_scale)
        tiling = of_many or CLUSTERS[_key(q, k)]
        run = kernel(FOLDER / "attend.cu", "decode_cluster", q.dtype, stored_type(k.dtype), tiling)

        def launch(grid, threads, args, shared, cluster):
            self._launch(run, grid, (threads, 1, 1), args, shared, cluster)

        return clustered(tiling, blocks, *given, k_scale=k_scale, v_scale=v_scale, run=launch)

    def _launch(self, run, grid, block, args, shared: int, cluster) -> None:
        run(grid, block, args, shared, cluster, self.early)

    def _streams(self, weight) -> bool:
        """Does its product fit the stream of gemv?"""
        return (Stored.of(weight).refusal if isinstance(weight, torch.Tensor) else quantised_refusal(weight, self.dtype)) is None

    def _turn_and_write(self, index: int, qkv: torch.Tensor, positions, slots, turns=None, out=None) -> torch.Tensor:
        """RoPE, and keys and values into the cache; q (n, heads, head_dim). A cache of 8 bits takes, for positions, a row of `turns` for each token,
        and room for q."""
        cache = self.cache.layer(index)
        if cache[0].dtype == qkv.dtype:
            return lk.qkv_rope_cache(qkv, cache[:2], self.model.angles, positions, slots)
        return bytes_written(qkv, cache, self.model.angles if turns is None else turns, positions, slots, out=out, early=self.early)

    def _linear(self, x: torch.Tensor, layer) -> torch.Tensor:
        return layer(x) if isinstance(layer, QuantLinear) else F.linear(x, layer.weight)

    def _head(self, normed: torch.Tensor) -> torch.Tensor:
        if isinstance(self.model.head, QuantLinear):
            return self.model.head(normed).float()
        weight = self.model.head_weight
        if self.dtype != torch.float32 and 0 < len(normed) <= MOST_NARROW and weight.shape[1] % 32 == 0:
            return lk.gemv(normed, weight, out_dtype=torch.float32)
        return F.linear(normed, weight).float()


def _tensors(weight) -> tuple:
    """What the stream reads of a weight."""
    return (weight, None, None) if isinstance(weight, torch.Tensor) else (weight.packed, weight.scales, weight.codebook)


def _linears(block) -> tuple:
    return block.attention.qkv_proj, block.attention.out_proj, block.ffn.gate_up_proj, block.ffn.down_proj

