# reason: mismatch
return p * dp
