"""Hugging Face's Llama in the ablation: the same shape and weights, the same tokens, the same definition of the loss.

Notable: under torch.compile transformers builds an explicit mask and loses the causal fast path; that is mended here, so that the row is
what a careful user gets. Liger replaces norms, RoPE, SwiGLU and the loss by its Triton kernels. Either has bf16 weights and PyTorch's
fused AdamW, no clipping.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from labkernels.llm.model import Transformer
from labkernels.llm.pretrained import config_to_hugging_face, layout

PEERS = ("hf_eager", "hf_compiled", "hf_compiled_layers", "hf_liger")


def hugging_face(peer: str, ours: Transformer, lr: float, weight_decay: float) -> Callable[..., torch.Tensor]:
    """step(inputs, targets) -> loss: one update of Hugging Face's model with the weights of `ours`, bfloat16. ImportError where a library is missing."""
    import transformers
    from transformers import masking_utils
    from transformers.models.llama import modeling_llama

    importlib.reload(modeling_llama)  # as it was before Liger
    config = transformers.LlamaConfig(**config_to_hugging_face(ours.config), use_cache=False)
    config._attn_implementation = "sdpa"
    if peer == "hf_liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    with torch.device("meta"):
        model = modeling_llama.LlamaForCausalLM(config)
    device = next(ours.parameters()).device
    model = model.to(torch.bfloat16).to_empty(device=device)
    parameters, state = dict(ours.named_parameters()), {}
    for name, part in layout(ours.config).items():
        state[name] = parameters[part.parameter].detach()[part.first : part.first + part.rows].to(torch.bfloat16)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    with device:
        model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies are no part of a state_dict
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay, fused=device.type == "cuda")
    forward = model
    if peer.startswith("hf_compiled"):
        masking_utils.is_tracing = lambda *args, **kwargs: False
    if peer == "hf_compiled":
        forward = torch.compile(model)
    if peer == "hf_compiled_layers":  # one graph for all layers: seconds of compilation, not a minute
        for layer in model.model.layers:
            layer.compile()
        model.loss_function = torch.compile(model.loss_function)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = forward(input_ids=inputs, labels=targets, shift_labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
