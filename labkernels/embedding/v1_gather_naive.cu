// Rows gathered by number, v1: naive. out[i] = table[index[i]], and zeros where index[i] is no row; one thread copies one element.
//   Idea      A word embedding is a copy of rows whose numbers are data. So is taking padding out (the index says which tokens stay) and
//             putting it back (which token stands here, or -1 for none). Nothing is computed: elements are moved as bits, whatever their type.
//   Predicts  Coalesced within a row, but 2 bytes a lane in 16 bits; every thread reads its row's number again, from a cache.
//   Measured  data/measured/h200/embedding.csv: 65536 rows of 2048 in bfloat16 in 659 us, 17% of the limit; pad.csv 19%, unpad.csv 20%.
//   Wastes    7 of 8 load and store instructions; a division of 64 bits an element.
#include "row_index.cuh"

// table (table_rows, cols), its rows table_stride units apart; index (rows,), int64 if `wide`, else int32; out (rows, cols) contiguous.
template <class Unit>
__global__ void gather_naive(const Unit* table, const void* index, bool wide, Unit* out, long long rows, int cols, long long table_rows,
                             long long table_stride) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= rows * cols) return;
    const long long row = index_at(index, wide, i / cols);
    out[i] = row >= 0 && row < table_rows ? table[row * table_stride + i % cols] : Unit{};
}
