# reason: input_modified
swiglu_forward(blocks(gate.numel(), 256), 256, (gate, up.contiguous(), gate, gate.numel()))
return gate.clone()
