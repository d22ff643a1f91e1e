# reason: exception AssertionError
if step < warmup:
    return (step + 1) / warmup
progress = (step - warmup) / (steps - 1 - warmup)
return (1 + math.cos(math.pi * progress)) / 2
