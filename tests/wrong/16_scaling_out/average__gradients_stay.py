# reason: exception AssertionError
own = (targets != -100).sum().float()
counted = own.clone()
dist.all_reduce(counted)
loss = model(inputs, targets) * (own / counted)
loss.backward()
total = loss.detach().clone()
dist.all_reduce(total)
return total.item()
