# reason: mismatch
qkv = F.linear(x, w_qkv).view(-1, head_dim)
q, k, v = qkv.split([len(qkv) - 2 * kv_heads, kv_heads, kv_heads])
keys[:, position], values[:, position] = k, v
scores = turn(q, turns).view(kv_heads, -1, head_dim) @ keys[:, : position + 1].mT * head_dim**-0.5
return F.linear((scores.softmax(-1) @ values[:, : position + 1]).flatten(), w_out)
