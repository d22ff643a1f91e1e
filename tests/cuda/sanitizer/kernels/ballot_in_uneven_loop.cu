// Barrier divergence: a vote in a loop that some lanes leave sooner.
//   Mistake   50 elements, 32 lanes: lanes 18 to 31 go round once, the others twice, and each round votes in full.
//   Why       In the second round the vote waits for lanes that have left the loop.
//   Fix       Loop over chunks; a lane past the end votes no.
//
// expect: barrier_divergence
// launch: grid=1 block=32 args=x[50],y:int32[1],n=50
// block: 0
// result: y = (x > 0).sum().int().view(1)

extern "C" __global__ void bad(const float* x, int* y, int n) {
    int lane = threadIdx.x, positive = 0;
    for (int i = lane; i < n; i += 32) {
        positive += __popc(__ballot_sync(0xffffffffu, x[i] > 0.0f));  // <-- here
    }
    if (lane == 0) y[0] = positive;
}

extern "C" __global__ void good(const float* x, int* y, int n) {
    int lane = threadIdx.x, positive = 0;
    for (int first = 0; first < n; first += 32) {
        int i = first + lane;
        positive += __popc(__ballot_sync(0xffffffffu, i < n && x[i] > 0.0f));
    }
    if (lane == 0) y[0] = positive;
}
