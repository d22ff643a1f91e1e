// reason: mismatch
int lane = thread % 32, group = 32 * each;      // each warp has its own stretch, but its lanes share it out in pieces
int i = thread / 32 * group + lane * each + k;
