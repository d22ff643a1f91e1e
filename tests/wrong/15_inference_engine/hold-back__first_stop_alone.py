# reason: exception AssertionError
stop = stops[0]
if stop in held:
    return held[: held.find(stop)], "", True
keep = max((n for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
return held[: len(held) - keep], held[len(held) - keep :], False
