# reason: mismatch
qkv = F.linear(x, w_qkv).view(-1, head_dim)
q, k, v = qkv.split([len(qkv) - 2 * kv_heads, kv_heads, kv_heads])
keys[:, position], values[:, position] = turn(k, turns), v
groups = turn(q, turns).view(-1, kv_heads, head_dim).transpose(0, 1)
scores = groups @ keys[:, : position + 1].mT * head_dim**-0.5
return F.linear((scores.softmax(-1) @ values[:, : position + 1]).transpose(0, 1).flatten(), w_out)
