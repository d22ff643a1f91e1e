# reason: mismatch
keys_of_query_3 = 3 + 1                  # forgets the 6 earlier keys
visible_pairs = sum(query + 1 for query in range(10))
