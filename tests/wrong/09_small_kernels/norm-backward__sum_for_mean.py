# reason: mismatch
normed, g = x * r, weight * dy
dx = r * (g - normed * (g * normed).sum(-1, keepdim=True))
return dx, (dy * normed).sum(0)
