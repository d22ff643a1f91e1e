# reason: exception AssertionError
for step in range(count - 1):
    send, receive = (rank - step) % count, (rank - step - 1) % count
    pieces[send] += exchange(pieces[send])
