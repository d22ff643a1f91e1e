# reason: exception AssertionError
out = torch.empty(gate.shape, device=gate.device)    # counts elements as they lie in memory, whatever the strides
gate, up = gate.as_strided(gate.shape, out.stride()), up.as_strided(up.shape, out.stride())
swiglu_forward(blocks(out.numel(), 256), 256, (gate, up, out, out.numel()))
return out
