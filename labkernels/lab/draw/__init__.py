"""The book's pictures: `lk.draw.attention_products()`. One file a topic; a picture is loaded when it is first drawn."""

from importlib import import_module

_HOME = {  # picture: the file it lives in
    "where_code_runs": "threads",
    "one_thread_each": "threads",
    "smoothing_windows": "threads",
    "curves": "threads",
    "grid_of_threads": "threads",
    "grid_stride": "threads",
    "warp_reads": "sectors",
    "matrix_in_memory": "sectors",
    "transpose_requests": "sectors",
    "vector_loads": "sectors",
    "transpose_tile": "banks",
    "tile_banks": "banks",
    "axpy_traffic": "limits",
    "ceilings": "limits",
    "roofline": "limits",
    "atomic_additions": "reductions",
    "reduction_tree": "reductions",
    "tree_warps": "reductions",
    "lane_exchange": "reductions",
    "rounding_errors": "reductions",
    "exponent_range": "softmax",
    "row_walk": "softmax",
    "online_softmax": "softmax",
    "softmax_trips": "softmax",
    "matmul_element": "matmul",
    "matmul_tiles": "matmul",
    "register_patch": "matmul",
    "attention_products": "attention",
    "attention_weights": "attention",
    "attention_masks": "attention",
    "attention_memory": "attention",
    "grouped_heads": "attention",
    "score_threads": "attention",
    "score_traffic": "attention",
    "accumulator": "flash",
    "attention_tiles": "flash",
    "tile_barriers": "flash",
    "causal_tiles": "flash",
    "scores_become_weights": "flash_warps",
    "attention_schedules": "flash_warps",
    "mma_fragments": "fragments",
    "swizzled_pieces": "fragments",
    "mbarrier_phases": "hopper",
    "wgmma_tile": "hopper",
    "specialised_block": "hopper",
    "attention_gradients": "gradients",
    "softmax_gradient": "gradients",
    "gradient_walks": "gradients",
    "norm_trips": "small",
    "partial_sums": "small",
    "rope_turns": "small",
    "cached_tokens": "cache",
    "cache_pages": "cache",
    "split_keys": "cache",
    "training_step": "training",
    "learning_rates": "training",
    "training_memory": "training",
    "singular_values": "training",
    "ablation": "training",
    "temperatures": "sampling",
    "nucleus": "sampling",
    "bit_search": "sampling",
    "ffn_trips": "feed_forward",
    "ffn_slices": "feed_forward",
    "weight_levels": "quantised",
    "packed_word": "quantised",
    "error_by_bits": "quantised",
    "operator_layers": "operators",
    "decoder_block": "transformer",
    "stacked_projection": "transformer",
    "parameter_budget": "transformer",
    "packed_documents": "transformer",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"lk.draw has no picture called {name!r}; there are {', '.join(sorted(_HOME))}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
