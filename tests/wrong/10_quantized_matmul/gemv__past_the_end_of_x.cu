// reason: sanitizer out_of_bounds
for (int i = 0; i < 4; ++i) {
    const unsigned pair = (word >> 4 * i) & 0x000f000f;
    sum += scale * (float(pair & 0xffff) - zero) * x[first + 2 * i];
    sum += scale * (float(pair >> 16) - zero) * x[first + 8 * i + 1];
}
