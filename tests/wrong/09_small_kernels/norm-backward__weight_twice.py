# reason: mismatch
normed, g = x * r, weight * dy
dx = r * (g - normed * (g * normed).mean(-1, keepdim=True))
return dx, (g * normed).sum(0)
