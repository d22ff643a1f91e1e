// reason: mismatch
return 31 - col;      // another order, but the same in every row
