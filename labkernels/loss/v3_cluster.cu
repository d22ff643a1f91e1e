// Cross-entropy, v3: a cluster a row (Hopper). Its blocks hold the row in their shared memory between the sum and the gradient.
//   Idea      A row of 128256 is too long for one multiprocessor's registers, not for the shared memory of several: 32 KB of it in each of eight
//             blocks, of which six run at a time on one multiprocessor. They exchange a maximum and a sum, and write.
//   Predicts  1 read and 1 write an element, and nothing can move less. Two exponentials an element stay: 36 us for 512 rows, beside 61 us of
//             bytes.
//   Measured  data/measured/h200/cross_entropy.csv: 512 rows of 128256 in bfloat16 128 -> 109 us, 57% of the limit (torch.compile 204); 2048 rows
//             490 -> 386, 64% (688); of 32000 144 -> 98. float32, 2048 rows of 32000: 193 -> 177 us.
//   Wastes    In `linear_cross_entropy` the read itself: the matmul that makes the logits has had them in its registers.
#include "block.cuh"
#include "cluster.cuh"
#include "row.cuh"
#include "vector.cuh"

constexpr int MOST_BLOCKS = 8;

// As in v1, with a cluster of blocks a row, each with `slice` of its elements in dynamic shared memory.
template <class T, int WIDTH>
__global__ void __launch_bounds__(512, 3)
cross_entropy_cluster(const T* logits, long long row_stride, T* gradient, long long gradient_stride, int slice, int vocab, const long long* targets,
                      Options options, const float* scale, int scale_step, float* losses) {
    extern __shared__ __align__(16) char dynamic[];
    __shared__ Statistics of_block[MOST_BLOCKS];
    T* kept = reinterpret_cast<T*>(dynamic);
    const int rank = cluster_rank(), size = cluster_size();
    const long long row = blockIdx.x / size;
    const int begin = rank * slice, count = min(slice, max(0, vocab - begin)), first = WIDTH * threadIdx.x, step = WIDTH * blockDim.x;
    const long long target = targets[row];
    const bool ignored = target == options.ignore_index, inside = target >= 0 && target < vocab;
    logits += row * row_stride + begin;
    if (gradient) gradient += row * gradient_stride + begin;
    if (ignored) {  // all of the cluster
        const float zeros[WIDTH] = {};
        if (rank == 0 && threadIdx.x == 0) losses[row] = 0.0f;
        for (int i = first; gradient && i < count; i += step) store_vector(gradient + i, zeros);
        return;
    }
    cluster_arrive();

    Statistics s = nothing();
#pragma unroll 8
    for (int i = first; i < count; i += step) {
        const Vector<T, WIDTH> vector = *reinterpret_cast<const Vector<T, WIDTH>*>(logits + i);
        *reinterpret_cast<Vector<T, WIDTH>*>(kept + i) = vector;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) s.max = fmaxf(s.max, to_float(vector.element[j]));
    }
    s.max = block_max(s.max);
    const float base = s.base();
    for (int i = first; i < count; i += step) {
        float value[WIDTH];
        load_vector(kept + i, value);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) s.sum += __expf(value[j] - base);
        if (options.smoothing > 0.0f) {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) s.total += value[j];
        }
    }
    s.sum = block_sum(s.sum);
    if (options.smoothing > 0.0f) s.total = block_sum(s.total);
    cluster_wait();  // every block has started, and its shared memory is there
    if (threadIdx.x < size) *map_shared_rank(&of_block[rank], threadIdx.x) = s;
    cluster_sync();
    s = nothing();
    for (int other = 0; other < size; ++other) s = merged(s, of_block[other]);

    const float lse = log_sum_exp(s);
    const int own_target = static_cast<int>(target - begin);  // anything outside 0 .. count - 1 where it is another block's
    if (threadIdx.x == 0 && (inside ? own_target >= 0 && own_target < count : rank == 0)) {
        losses[row] = loss_of(s, lse, inside ? to_float(kept[own_target]) : CUDART_NAN_F, vocab, options);
    }
    if (!gradient) return;
    const Gradient slope(s, lse, vocab, options, inside ? scale[row * scale_step] : CUDART_NAN_F);
    for (int i = first; i < count; i += step) {
        float value[WIDTH];
        load_vector(kept + i, value);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[j] = slope(value[j], i + j == own_target);
        store_vector(gradient + i, value);
    }
}
