# reason: exception AssertionError
counted = sum(targets.numel() for _, targets in batches)
mean = 0.0
for inputs, targets in batches:
    loss = model(inputs, targets) * (targets.numel() / counted)
    loss.backward()
    mean += loss.item()
return mean
