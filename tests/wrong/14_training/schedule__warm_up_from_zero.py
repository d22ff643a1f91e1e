# reason: exception AssertionError
if step < warmup:
    return step / warmup
progress = (step - warmup) / (steps - 1 - warmup)
return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
