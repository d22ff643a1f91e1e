// 8 x 8 matrices of 16-bit elements between shared memory and the registers of a warp, laid out as mma.sync wants its fragments.
//
// Lane 8*i + r hands in the address of row r of matrix i (8 elements, 16 bytes, on a multiple of 16): lanes 0-7 for one matrix,
// 0-15 for two, 0-31 for four; the other lanes' addresses are not looked at. Register i of the lanes belongs to matrix i:
//
//   ldmatrix        column  0   1   2   3   4   5   6   7        ldmatrix_trans: the same of the transposed matrix,
//     row 0               lane 0  lane 1  lane 2  lane 3           so that lane 4*g + t holds
//     row 1               lane 4  lane 5  lane 6  lane 7           M[2*t][g] (low half) and M[2*t+1][g] (high half).
//     ...                   (first column in the low half)         For a B that is stored by rows.
//     row 7               lane 28 lane 29 lane 30 lane 31
//
// All 32 lanes call. In the emulator each lane reads (writes) its own row, so that the sanitizer judges the row in that lane's name.
#pragma once
#include "elements.cuh"
#include "shared_address.cuh"

#ifdef LK_EMULATOR
namespace lk {

struct alignas(16) MatrixRow {
    unsigned pair[4];                   // of elements
};
template <int N> struct MatrixLane {
    MatrixRow row;
    unsigned registers[N];
};

template <int N, bool transposed, bool to_registers> LK_UNWATCHED void run_matrix(unsigned mask, void** lanes) {
    if (mask != 0xffffffffu) fail("ldmatrix or stmatrix: all 32 lanes must take part");
    for (int i = 0; i < N; ++i)
        for (int lane = 0; lane < 32; ++lane)
            for (int half = 0; half < 2; ++half) {
                const int row = transposed ? lane % 4 * 2 + half : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + half;
                auto* element = reinterpret_cast<std::uint16_t*>(static_cast<MatrixLane<N>*>(lanes[8 * i + row])->row.pair) + column;
                auto* own = reinterpret_cast<std::uint16_t*>(static_cast<MatrixLane<N>*>(lanes[lane])->registers + i) + half;
                if (to_registers) *own = *element;
                else *element = *own;
            }
}

LK_DEVICE void check_row(const void* row, const char* what) {
#ifndef LK_INSTRUMENTED                 // there the access itself tells
    if (reinterpret_cast<std::uintptr_t>(row) % 16) fail(what);
#endif
}

template <bool transposed, int N> LK_DEVICE void load_matrices(unsigned (&registers)[N], const void* row) {
    MatrixLane<N> own{};
    if (lane() < 8 * N) {
        check_row(row, "ldmatrix: the address of a row is not a multiple of 16");
        own.row = *static_cast<const MatrixRow*>(row);
    }
    collective(0xffffffffu, &own, run_matrix<N, transposed, true>, "ldmatrix");
    for (int i = 0; i < N; ++i) registers[i] = own.registers[i];
}

template <bool transposed, int N> LK_DEVICE void store_matrices(void* row, const unsigned (&registers)[N]) {
    MatrixLane<N> own{};
    for (int i = 0; i < N; ++i) own.registers[i] = registers[i];
    collective(0xffffffffu, &own, run_matrix<N, transposed, false>, "stmatrix");
    if (lane() < 8 * N) {
        check_row(row, "stmatrix: the address of a row is not a multiple of 16");
        *static_cast<MatrixRow*>(row) = own.row;
    }
}

}  // namespace lk
#define LK_LDMATRIX(transposed, ptx) lk::load_matrices<transposed>(registers, row);
#define LK_STMATRIX(transposed, ptx) lk::store_matrices<transposed>(row, registers);
#else
#define LK_LDMATRIX(transposed, ptx)                                                                                                \
    const unsigned address = shared_address(row);                                                                                   \
    if constexpr (N == 1)                                                                                                           \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" ptx ".shared.b16 {%0}, [%1];" : "=r"(registers[0]) : "r"(address) : "memory"); \
    else if constexpr (N == 2)                                                                                                      \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" ptx ".shared.b16 {%0, %1}, [%2];"                                              \
                     : "=r"(registers[0]), "=r"(registers[1]) : "r"(address) : "memory");                                           \
    else                                                                                                                            \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" ptx ".shared.b16 {%0, %1, %2, %3}, [%4];"                                      \
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3]) : "r"(address) : "memory");
#define LK_STMATRIX(transposed, ptx)                                                                                              \
    const unsigned address = shared_address(row);                                                                                 \
    if constexpr (N == 1)                                                                                                         \
        asm volatile("stmatrix.sync.aligned.m8n8.x1" ptx ".shared.b16 [%0], {%1};" ::"r"(address), "r"(registers[0]) : "memory"); \
    else if constexpr (N == 2)                                                                                                    \
        asm volatile("stmatrix.sync.aligned.m8n8.x2" ptx ".shared.b16 [%0], {%1, %2};"                                            \
                     ::"r"(address), "r"(registers[0]), "r"(registers[1]) : "memory");                                            \
    else                                                                                                                          \
        asm volatile("stmatrix.sync.aligned.m8n8.x4" ptx ".shared.b16 [%0], {%1, %2, %3, %4};"                                    \
                     ::"r"(address), "r"(registers[0]), "r"(registers[1]), "r"(registers[2]), "r"(registers[3]) : "memory");
#endif

#define LK_MATRIX_COUNT static_assert(N == 1 || N == 2 || N == 4, "one, two or four matrices at a time");

// N matrices into registers[0] .. registers[N-1] (sm_75).
template <int N>
__device__ __forceinline__ void ldmatrix(unsigned (&registers)[N], const void* row) {
    LK_MATRIX_COUNT
    LK_LDMATRIX(false, "")
}

// N matrices, each transposed on the way (sm_75).
template <int N>
__device__ __forceinline__ void ldmatrix_trans(unsigned (&registers)[N], const void* row) {
    LK_MATRIX_COUNT
    LK_LDMATRIX(true, ".trans")
}

// registers[0] .. registers[N-1] into N matrices (sm_90).
template <int N>
__device__ __forceinline__ void stmatrix(void* row, const unsigned (&registers)[N]) {
    LK_MATRIX_COUNT
    LK_STMATRIX(false, "")
}

// N matrices, each transposed on the way (sm_90).
template <int N>
__device__ __forceinline__ void stmatrix_trans(void* row, const unsigned (&registers)[N]) {
    LK_MATRIX_COUNT
    LK_STMATRIX(true, ".trans")
}
#undef LK_MATRIX_COUNT
#undef LK_LDMATRIX
#undef LK_STMATRIX
