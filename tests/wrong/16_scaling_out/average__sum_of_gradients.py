# reason: exception AssertionError
own = (targets != -100).sum().float()
counted = own.clone()
dist.all_reduce(counted)
loss = model(inputs, targets)
loss.backward()
for p in model.parameters():
    dist.all_reduce(p.grad)
total = loss.detach() * (own / counted)
dist.all_reduce(total)
return total.item()
