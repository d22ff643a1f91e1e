# reason: exception RuntimeError
return p * (dp - (p * dp).sum(-1))
