// reason: mismatch
for (int r = 0; r < 2; ++r) {
    float new_max = max[r];
    for (int half = 0; half < 2; ++half) new_max = fmaxf(new_max, fmaxf(score[half][2 * r], score[half][2 * r + 1]));
    new_max = fmaxf(new_max, __shfl_xor_sync(0xffffffffu, new_max, 1));
    new_max = fmaxf(new_max, __shfl_xor_sync(0xffffffffu, new_max, 2));
    const float correction = __expf(max[r] - new_max);
    max[r] = new_max;
    sum[r] *= correction;
    for (int i = 0; i < 4; ++i) {
        float& s = score[i / 2][2 * r + i % 2];
        s = __expf(s - new_max);
        sum[r] += s;
    }
}
weight[0] = pack_bf16x2(score[0][0], score[0][1]);
weight[1] = pack_bf16x2(score[0][2], score[0][3]);
weight[2] = pack_bf16x2(score[1][0], score[1][1]);
weight[3] = pack_bf16x2(score[1][2], score[1][3]);
