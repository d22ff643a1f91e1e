// reason: mismatch
const int row = pair / half, i = pair % half, position = first + row % tokens;
float sine, cosine;
sincosf(position * frequencies[i], &sine, &cosine);
const float a = x[row * 2 * half + 2 * i], b = x[row * 2 * half + 2 * i + 1];
y[row * 2 * half + 2 * i] = a * cosine - b * sine;
y[row * 2 * half + 2 * i + 1] = b * cosine + a * sine;
