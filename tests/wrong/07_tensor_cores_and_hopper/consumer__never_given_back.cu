// reason: sanitizer deadlock
mbarrier_wait(&full[s], round % 2);
const MatrixDescriptor left = matrix_descriptor(a_tile[s], 0, 1024, 128);
const MatrixDescriptor right = matrix_descriptor(b_tile[s], 0, 1024, 128);
wgmma_fence();
for (int part = 0; part < 4; ++part) wgmma<__nv_bfloat16>(d, left + 2 * part, right + 2 * part, true);
wgmma_commit();
wgmma_wait<0>(d);
