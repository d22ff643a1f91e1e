# reason: mismatch
ordered = p.sort(-1, descending=True).values
before = ordered.cumsum(-1) - ordered
kept = torch.where(before < top_p, ordered, 0.0)
return kept / kept.sum(-1, keepdim=True)
