// reason: sanitizer race
int i = thread + k * blockDim.x;
