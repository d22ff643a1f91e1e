# reason: mismatch
square = x @ x.mT
return 3.4445 * x - 4.775 * square @ x
