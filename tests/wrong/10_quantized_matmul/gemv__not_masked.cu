// reason: mismatch
for (int i = 0; i < 4; ++i) {
    const unsigned pair = (word >> 4 * i);
    sum += scale * (float(pair & 0xffff) - zero) * x[first + 2 * i];
    sum += scale * (float(pair >> 16) - zero) * x[first + 2 * i + 1];
}
