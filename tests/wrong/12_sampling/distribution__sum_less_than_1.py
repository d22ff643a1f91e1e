# reason: mismatch
ordered, order = p.sort(-1, descending=True)
before = ordered.cumsum(-1) - ordered
kept = torch.where(before < top_p, ordered, 0.0)
return torch.zeros_like(p).scatter(-1, order, kept)
