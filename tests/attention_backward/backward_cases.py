"""Inputs and the judgement that the tests of every version share."""

import torch

from labkernels.attention_backward import varlen
from labkernels.lab.candidate import Candidate
from labkernels.lab.judge import Case, Judge
from labkernels.operation import ops

WINDOWS = [  # no mask: one instance of a kernel for each head_dim and dtype
    {"seq_len": 1},
    {"seq_len": 3, "kv_len": 33},
    {"seq_len": 130, "kv_len": 140, "causal": True},
    {"seq_len": 20, "kv_len": 30, "causal": True, "heads": 4, "kv_heads": 2, "batch": 2},
    {"seq_len": 200, "kv_len": 70, "causal": True},  # the first queries see nothing
    {"seq_len": 150, "kv_len": 300, "causal": True, "window": (70, None)},
    {"seq_len": 65, "kv_len": 257, "window": (30, 20), "scale": 0.3},
    {"seq_len": 70, "kv_len": 130, "causal": True, "layout": "packed"},
]
MASKS = [
    {"seq_len": 70, "kv_len": 150, "mask": "whole_queries", "heads": 2},
    {"seq_len": 66, "kv_len": 140, "mask": "padding", "batch": 2, "heads": 2, "causal": True},
    {"seq_len": 35, "kv_len": 66, "mask": "bias", "heads": 2, "kv_heads": 1},
    {"seq_len": 45, "kv_len": 70, "mask": "float32_bias", "causal": True, "scale": 0.3},
]
LENGTHS = [
    {"lengths": (70, 3, 0, 65), "causal": True, "heads": 2},
    {"lengths": ((3, 70), (0, 20), (40, 0), (66, 33)), "heads": 4, "kv_heads": 2},
    {"lengths": ((66, 20), (20, 166)), "causal": True, "window": (9, None)},
]


def complete(shape: dict) -> dict:
    heads = shape.get("heads", 1)
    return {"batch": 1, "heads": heads, "kv_heads": heads, "kv_len": shape["seq_len"], "head_dim": 64, "causal": False, **shape}


def assert_right(backward, shape: dict, dtype=torch.bfloat16, device="cpu", repeat=False) -> None:
    """As `check` judges one case; `repeat` asks for equal bits if the shape says deterministic."""
    op = varlen.OP if "lengths" in shape else ops["attention_backward"]
    shape = shape if "lengths" in shape else complete(shape)
    case = Case(shape, dtype, 0, device)
    refusal = Judge(op, Candidate("backward", backward, lambda **_: None, None), device).judge(case, repeat)
    assert refusal is None
