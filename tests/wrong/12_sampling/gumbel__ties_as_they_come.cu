// reason: exception AssertionError
for (int i = lane; i < vocab; i += 32) {
    const float value = logits[row * vocab + i] / temperature - logf(-logf(u[row * vocab + i]));
    if (value > best) best = value, best_token = i;
}
for (int distance = 16; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(0xffffffff, best, distance);
    const int other_token = __shfl_xor_sync(0xffffffff, best_token, distance);
    if (other > best) best = other, best_token = other_token;    // of equal values each lane keeps its own
}
