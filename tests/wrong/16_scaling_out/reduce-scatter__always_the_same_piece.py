# reason: exception AssertionError
for step in range(count - 1):
    pieces[(rank - 1) % count] += exchange(pieces[rank])
