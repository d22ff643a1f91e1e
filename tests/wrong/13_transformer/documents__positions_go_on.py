# reason: exception AssertionError
targets = torch.full_like(tokens, -100)
targets[:-1] = tokens[1:]
targets[torch.tensor(cu_seqlens[1:]) - 1] = -100
return torch.arange(len(tokens)), targets
