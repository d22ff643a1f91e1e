# reason: mismatch
qkv = F.linear(x, w_qkv).view(-1, head_dim)
q, k, v = qkv.split([len(qkv) - 2 * kv_heads, kv_heads, kv_heads])
keys[:, position], values[:, position] = turn(k, turns), v
scores = turn(q, turns).view(kv_heads, -1, head_dim) @ keys.mT * head_dim**-0.5
return F.linear((scores.softmax(-1) @ values).flatten(), w_out)
