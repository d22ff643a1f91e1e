// reason: sanitizer out_of_bounds
return col + row;      // not % 32
