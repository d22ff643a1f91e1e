# reason: mismatch
return (torch.exp(lses)[..., None] * outs).sum(0)
