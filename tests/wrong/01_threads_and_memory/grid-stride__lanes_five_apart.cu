// reason: mismatch
int i = k * threads + 5 * thread % threads;      // every element once, as 5 and 256 have no common factor, and 20 sectors a request
