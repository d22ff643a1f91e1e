# reason: exception AssertionError
return {
    "attention_norm.weight": layer["post_attention_layernorm.weight"],
    "attention.qkv_proj.weight": torch.cat([layer[f"self_attn.{each}_proj.weight"] for each in "qkv"]),
    "attention.out_proj.weight": layer["self_attn.o_proj.weight"],
    "ffn_norm.weight": layer["input_layernorm.weight"],
    "ffn.gate_up_proj.weight": torch.cat([layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"]]),
    "ffn.down_proj.weight": layer["mlp.down_proj.weight"],
}
