# reason: mismatch
scale = (high - low) / 16
scale = torch.where(scale == 0, torch.ones_like(scale), scale)
zero = torch.round(-low / scale)
q = (torch.round(w / scale) + zero).clamp(0, 15)
return scale * (q - zero)
