# reason: mismatch
ordered, order = p.sort(-1, descending=True)
kept = torch.where(ordered.cumsum(-1) <= top_p, ordered, 0.0)
kept = torch.zeros_like(p).scatter(-1, order, kept)
return kept / kept.sum(-1, keepdim=True).clamp(min=1e-9)
