# reason: exception AssertionError
moment = beta * moment + grad.chunk(count)[rank]
piece = weight.chunk(count)[rank] - lr * moment
return all_gather(piece), moment
