// reason: sanitizer out_of_bounds
return piece ^ row;           // rows 8 to 15 keep places up to 15
