# reason: mismatch
return outs.mean(0)
