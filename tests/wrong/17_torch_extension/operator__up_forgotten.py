# reason: mismatch
gate, up = gate.contiguous(), torch.ones_like(up.contiguous())
out = torch.empty_like(gate)
swiglu_forward(blocks(out.numel(), 256), 256, (gate, up, out, out.numel()))
return out
