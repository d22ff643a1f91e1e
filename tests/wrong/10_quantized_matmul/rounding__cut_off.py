# reason: mismatch
scale = (high - low) / 15
scale = torch.where(scale == 0, torch.ones_like(scale), scale)
zero = torch.round(-low / scale)
q = (torch.floor(w / scale) + zero).clamp(0, 15)
return scale * (q - zero)
