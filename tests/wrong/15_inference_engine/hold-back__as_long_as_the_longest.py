# reason: exception AssertionError
found = [held.find(stop) for stop in stops if stop in held]
if found:
    return held[: min(found)], "", True
keep = min(len(held), max(map(len, stops)) - 1)
return held[: len(held) - keep], held[len(held) - keep :], False
