// reason: mismatch
return piece;
