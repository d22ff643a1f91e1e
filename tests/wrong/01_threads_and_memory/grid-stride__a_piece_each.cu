// reason: mismatch
int i = thread * each + k;      // right, with 32 sectors a request
