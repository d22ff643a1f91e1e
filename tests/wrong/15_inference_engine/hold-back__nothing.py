# reason: exception AssertionError
found = [held.find(stop) for stop in stops if stop in held]
return (held[: min(found)], "", True) if found else (held, "", False)
