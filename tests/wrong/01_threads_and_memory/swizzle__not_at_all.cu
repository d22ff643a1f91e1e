// reason: mismatch
return col;      // right, with 31 conflicts a request
