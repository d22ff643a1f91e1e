# reason: exception AssertionError
found = [held.find(stop) for stop in stops if stop in held]
if found:
    return held[: min(found)], "", True
keep = min((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
return held[: len(held) - keep], held[len(held) - keep :], False
