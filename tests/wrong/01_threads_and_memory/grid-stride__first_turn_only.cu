// reason: not_written
int i = thread;
if (k > 0) break;
