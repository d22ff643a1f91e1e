# reason: exception AssertionError
def setup_context(ctx, inputs, output):
    ### BEGIN SOLUTION
    ctx.save_for_backward(*inputs)
    ### END SOLUTION


def backward(ctx, grad):
    gate, up = ctx.saved_tensors
    return torch.ops.lab17.swiglu_backward(grad, gate, up)[::-1]


swiglu.register_autograd(backward, setup_context=setup_context)
