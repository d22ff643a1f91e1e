// reason: mismatch
for (int distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(0xffffffff, value, distance);
return value;      // right in lane 0 only
