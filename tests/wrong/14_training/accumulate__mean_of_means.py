# reason: exception AssertionError
mean = 0.0
for inputs, targets in batches:
    loss = model(inputs, targets) / len(batches)
    loss.backward()
    mean += loss.item()
return mean
