# reason: exception AssertionError
for step in range(count - 1):
    send, receive = (rank - step - 1) % count, (rank - step - 2) % count
    pieces[receive] = exchange(pieces[send])
