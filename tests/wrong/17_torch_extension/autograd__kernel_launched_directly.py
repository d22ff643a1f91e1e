# reason: exception OpCheckError
def setup_context(ctx, inputs, output):
    ### BEGIN SOLUTION
    ctx.save_for_backward(*inputs)
    ### END SOLUTION


def backward(ctx, grad):
    gate, up = ctx.saved_tensors
    grad, grads = grad.contiguous(), (torch.empty_like(gate), torch.empty_like(up))
    swiglu_backward_kernel(blocks(grad.numel(), 256), 256, (grad, gate, up, *grads, grad.numel()))
    return grads


swiglu.register_autograd(backward, setup_context=setup_context)
