# reason: exception AssertionError
passed = x
total = x.clone()
for step in range(count - 1):
    passed = exchange(passed)
    total += passed
pieces = list(total.chunk(count))
