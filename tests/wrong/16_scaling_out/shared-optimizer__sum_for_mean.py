# reason: exception AssertionError
moment = beta * moment + reduce_scatter(grad)
piece = weight.chunk(count)[rank] - lr * moment
return all_gather(piece), moment
