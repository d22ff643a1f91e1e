// reason: mismatch
int i = thread + k * threads;
if (i < n) { out[i] = a; continue; }      // reads nothing
