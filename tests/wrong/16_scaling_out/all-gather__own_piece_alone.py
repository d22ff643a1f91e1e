# reason: exception AssertionError
for step in range(count - 1):
    pieces[(rank - step - 1) % count] = exchange(piece)
