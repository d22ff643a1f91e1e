# reason: exception AssertionError
def gradients(kernels):
    model.kernels = kernels
    model(tokens, targets).backward()
    return [weight.grad.clone() for weight in model.parameters()]

theirs, ours = gradients("torch"), gradients({operation: "labkernels"})
model.kernels = "torch"
return (max((a - b).abs().max() for a, b in zip(theirs, ours)) / max(a.abs().max() for a in theirs)).item()
