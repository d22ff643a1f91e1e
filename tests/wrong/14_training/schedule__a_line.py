# reason: exception AssertionError
if step < warmup:
    return (step + 1) / warmup
return 1 - (1 - floor) * (step - warmup) / (steps - 1 - warmup)
