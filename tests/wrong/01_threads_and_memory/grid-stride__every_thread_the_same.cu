// reason: sanitizer race
int i = k;
