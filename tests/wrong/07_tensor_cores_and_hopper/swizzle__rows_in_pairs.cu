// reason: mismatch
return piece ^ row / 2;
