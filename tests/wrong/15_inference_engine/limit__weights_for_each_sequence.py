# reason: exception AssertionError
q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
weights = c.num_layers * c.embed_dim * (q + 2 * kv + q + 3 * c.ffn_dim)
return batch * weights * bits / 8, c.vocab_size * c.embed_dim * 2, batch * length * c.num_layers * 2 * kv * 2
