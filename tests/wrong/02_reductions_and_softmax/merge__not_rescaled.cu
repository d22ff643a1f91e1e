// reason: mismatch
return {fmaxf(a.m, b.m), a.s + b.s};
