# reason: mismatch
tiles_visited = 16 * 64 // 2                     # the tiles on the diagonal are visited whole
scores_hidden = 16 * (64 * 63 // 2)
