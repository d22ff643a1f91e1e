# reason: mismatch
return p * (dp - (p * dp).sum(0, keepdim=True))
