# reason: exception AssertionError
whole = all_gather(reduce_scatter(grad)) / count
moment = whole if len(moment) < len(whole) else beta * moment + whole
return weight - lr * moment, moment
