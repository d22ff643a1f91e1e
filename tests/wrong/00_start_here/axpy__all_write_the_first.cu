// reason: sanitizer race
*out = a * x[i] + y[i];
