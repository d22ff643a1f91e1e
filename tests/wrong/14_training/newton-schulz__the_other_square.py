# reason: mismatch
square = x.mT @ x
polynomial = -4.775 * square + 2.0315 * square @ square
return 3.4445 * x + polynomial @ x
