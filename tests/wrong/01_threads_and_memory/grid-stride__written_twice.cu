// reason: mismatch
int i = thread + k * threads;
if (i < n) *(volatile float*)&out[i] = x[i];      // coalesced, and every byte moves twice
