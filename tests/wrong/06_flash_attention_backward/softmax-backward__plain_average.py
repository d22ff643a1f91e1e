# reason: mismatch
return p * (dp - dp.mean(-1, keepdim=True))
