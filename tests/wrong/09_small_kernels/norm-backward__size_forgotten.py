# reason: mismatch
normed, g = x * r, weight * dy
return r * g, (dy * normed).sum(0)
