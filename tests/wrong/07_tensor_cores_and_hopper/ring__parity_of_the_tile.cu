// reason: sanitizer deadlock
if (producer) {
    for (int k = 0; k < tiles; ++k) {
        const int s = k % STAGES, round = k / STAGES;
        mbarrier_wait(&empty[s], (round + 1) % 2);
        mbarrier_arrive_expect_tx(&full[s], BOX_BYTES);
        tma_load(box[s], x, &full[s], 0, k * ROWS);
    }
}
if (consumer) {
    for (int k = 0; k < tiles; ++k) {
        const int s = k % STAGES, round = k / STAGES;
        mbarrier_wait(&full[s], k % 2);
        for (int i = 0; i < ROWS; ++i) sum += box[s][i][lane];
        mbarrier_arrive(&empty[s]);
    }
}
