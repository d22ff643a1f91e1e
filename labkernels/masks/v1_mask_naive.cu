// Attention masks, v1: naive. One thread decides one pair of a query and a key.
//   Idea      A key may be seen if it is within its sequence's length, not after the query where the mask is causal, and within the window:
//             three comparisons, no data read but one length a sequence. Written as a bool, or as what is added to the scores: 0 or `hidden`.
//   Predicts  Nothing but stores, of 1 or 2 bytes a lane; PyTorch's comparisons each write a mask of their own and read it again.
//   Measured  data/measured/h200/attention_mask.csv: 8 x 8192 x 8192 in bfloat16 in 2.35 ms, 11% of a copy's bandwidth; PyTorch 3.09 ms.
//   Wastes    15 of 16 store instructions; divisions of 64 bits an element.
#include "may_see.cuh"

// out (batch, seq_len, kv_len) contiguous: `seen` or `hidden`. lengths (batch,) int64, of the keys of each sequence, or null.
template <class T>
__global__ void mask_naive(T* out, const long long* lengths, long long batch, int seq_len, int kv_len, int left, int right, float seen,
                           float hidden) {
    const long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= batch * seq_len * kv_len) return;
    const int key = index % kv_len, query = index / kv_len % seq_len;
    const long long length = lengths ? lengths[index / kv_len / seq_len] : kv_len;
    out[index] = mask_value<T>(may_see(query + kv_len - seq_len, key, length, left, right) ? seen : hidden);
}
