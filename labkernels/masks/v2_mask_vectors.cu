// Attention masks, v2: vectors. A thread decides WIDTH neighbouring keys and writes them as 16 bytes; a block writes ROWS rows.
//   Idea      A warp's store of 16 bytes a lane is 512 bytes at once. What a query may see is one run of keys, from `first` to before `end`:
//             worked out once a thread, then two comparisons a key. A block knows its row, so nothing is divided but by the block's number.
//   Predicts  The time in which the bytes can be written.
//   Measured  data/measured/h200/attention_mask.csv: 8 x 8192 x 8192 in bfloat16 2354 -> 267 us, 95% of the limit (torch.compile 348,
//             PyTorch 3075); 8 x 2048 x 2048 150 -> 18.6 (24.3).
//   Wastes    The mask itself: attention kernels that know the rule need none of it.
#include "may_see.cuh"

constexpr int ROWS = 8;

// As mask_naive; kv_len is a multiple of WIDTH. Block x has rows 8 x ... of all batch * seq_len; row r is query r % seq_len of sequence r / seq_len.
template <class T, int WIDTH>
__global__ void mask_vectors(T* out, const long long* lengths, unsigned rows, int seq_len, int kv_len, int left, int right, float seen,
                             float hidden) {
    const T yes = mask_value<T>(seen), no = mask_value<T>(hidden);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const unsigned row = blockIdx.x * ROWS + i;
        if (row >= rows) return;
        const unsigned sequence = row / seq_len;
        const int place = static_cast<int>(row - sequence * seq_len) + kv_len - seq_len;
        int first = left < 0 ? 0 : place - left, end = right < 0 ? kv_len : min(kv_len, place + right + 1);
        if (lengths) end = static_cast<int>(min(static_cast<long long>(end), lengths[sequence]));
        for (int key = threadIdx.x * WIDTH; key < kv_len; key += blockDim.x * WIDTH) {
            Vector<T, WIDTH> vector;
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) vector.element[j] = key + j >= first && key + j < end ? yes : no;
            *reinterpret_cast<Vector<T, WIDTH>*>(out + row * static_cast<long long>(kv_len) + key) = vector;
        }
    }
}
