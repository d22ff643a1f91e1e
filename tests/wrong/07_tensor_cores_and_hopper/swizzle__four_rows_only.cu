// reason: mismatch
return piece ^ row % 4;       // two rows meet
