# reason: mismatch
by_head = (x @ w_qkv.t()).view(batch, seq, heads + 2 * kv_heads, -1).transpose(1, 2)
q, k, v = by_head.split([heads, kv_heads, kv_heads], dim=1)
q, k = lk.functional.rope(q, k, frequencies)
out = lk.functional.attention(q, k, v, causal=True)
return out.reshape(batch, seq, -1) @ w_out.t()
