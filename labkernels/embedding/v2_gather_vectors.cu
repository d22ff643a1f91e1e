// Rows gathered by number, v2: vectors. A thread copies VECTORS times 16 bytes; all numbers first, then all rows, then all stores.
//   Idea      A row's address is known only when its number has arrived: two trips to memory, one after the other. Several of them at once
//             a thread, and many threads, hide both. A unit is 16 bytes of a row where rows are multiples of that, whatever the elements.
//   Predicts  The time of a copy of the rows that are read and written.
//   Measured  data/measured/h200/embedding.csv: 65536 rows of 2048 in bfloat16 658.8 -> 131.6 us, 86% of the limit (torch.compile 136.5, PyTorch
//             143.4): a row is 4 KB, and rows that follow each other are not neighbours in memory. pad.csv, where they are: 521 -> 108 us, 92%
//             (torch.compile 112); unpad.csv: 353 -> 77 us, 93% (75).
//   Wastes    A division of 32 bits a vector to find its row; nothing that a copy does not waste as well.
#include "row_index.cuh"

// As gather_naive; `units` = rows * cols in all, fewer than 2^31.
template <class Unit, int VECTORS>
__global__ void gather_vectors(const Unit* table, const void* index, bool wide, Unit* out, unsigned units, unsigned cols,
                               long long table_rows, long long table_stride) {
    const unsigned first = blockIdx.x * (blockDim.x * VECTORS) + threadIdx.x;
    Unit value[VECTORS];
    long long row[VECTORS];
    unsigned col[VECTORS];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const unsigned i = first + k * blockDim.x, at = i / cols;
        row[k] = -1;
        col[k] = i - at * cols;
        if (i < units) row[k] = index_at(index, wide, at);
    }
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        value[k] = Unit{};
        if (row[k] >= 0 && row[k] < table_rows) value[k] = table[row[k] * table_stride + col[k]];
    }
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const unsigned i = first + k * blockDim.x;
        if (i < units) __stcs(out + i, value[k]);  // not soon needed: the table may stay in the caches
    }
}
