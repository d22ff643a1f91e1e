# reason: exception AssertionError
counted = sum(int((targets != -100).sum()) for _, targets in batches)
mean = 0.0
for inputs, targets in batches:
    model.zero_grad()
    loss = model(inputs, targets) * (int((targets != -100).sum()) / counted)
    loss.backward()
    mean += loss.item()
return mean
