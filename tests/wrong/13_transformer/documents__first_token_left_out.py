# reason: exception AssertionError
positions = torch.cat([torch.arange(end - begin) for begin, end in zip(cu_seqlens, cu_seqlens[1:])])
targets = torch.full_like(tokens, -100)
targets[:-1] = tokens[1:]
targets[torch.tensor(cu_seqlens[:-1])] = -100
return positions, targets
