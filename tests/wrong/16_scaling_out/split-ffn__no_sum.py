# reason: exception AssertionError
gates, ups = (half.chunk(count)[rank] for half in gate_up.chunk(2))
hidden = F.silu(x @ gates.T) * (x @ ups.T)
return hidden @ back.chunk(count, dim=1)[rank].T
