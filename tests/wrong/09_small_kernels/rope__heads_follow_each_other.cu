// reason: mismatch
const int row = pair / half, i = pair % half, position = first + row;
float sine, cosine;
sincosf(position * frequencies[i], &sine, &cosine);
const float a = x[row * 2 * half + i], b = x[row * 2 * half + half + i];
y[row * 2 * half + i] = a * cosine - b * sine;
y[row * 2 * half + half + i] = b * cosine + a * sine;
