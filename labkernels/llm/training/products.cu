// Products of a transformer's block in training that do what comes after them with the sums in registers, on Hopper (sm_90a).
//
//   swiglu_forward     gate_up = x w1^T, and hidden = silu(gate) * up beside it
//   swiglu_backward    inner = grad w2 is never written: out of it come the gradients of gate and up, and hidden once more
//   turned_projection  qkv = x w^T, its queries and keys turned by their positions (RoPE)
//
//   Idea      A GPU in training is held by its power limit, and what moves through memory costs energy beside time. A walk over gate and up, 0.5 GB a
//             layer of 32768 tokens, is read in the forward pass and again, with inner written and read, in the backward pass. Sums are in registers when
//             they are complete: gates and ups are halves of one tile (as matmul v7's GATED), and RoPE's pairs, half a head apart, belong to one thread.
//   Predicts  32768 tokens, embed 1536, ffn 4096, 24 layers: 0.54 GB a layer less in the forward pass, 0.54 less in the backward pass and the rest beside
//             products: 3 and 5 to 7 of 270 ms. RoPE: 0.25 GB a layer less, 1.4 ms.
//   Measured  data/measured/h200/training.csv, cublas and fused_products: 272.9 -> 266.9 ms a step, the three together. When they were tuned, alone, ms a
//             layer, before: cuBLAS's product (which alone takes as long as in brackets) and the walk after it
//                 swiglu_forward      1.231 (1.075) -> 1.135
//                 swiglu_backward     0.933 (0.549) -> 0.839 with a lag of 1, 0.860 of 0, 0.870 of 2, without hidden 0.754
//                 turned_projection   0.366 (0.300) -> 0.325
//             2.3, 2.3 and 1.0 ms of a step: half of what was predicted.
//   Wastes    What is done with a tile's sums takes a third as long as its product in swiglu_backward, and nobody multiplies in that warpgroup meanwhile. The
//             other one runs LAG stages apart, which hides a part; with HIDDEN there is room for three stages, so that it can be one apart at most.
#include "../../ffn/activation.cuh"
#include "../../loss/tiles.cuh"
#include "../../rope/rope.cuh"

constexpr int SILU = static_cast<int>(Activation::kSilu), COLUMNS_OF_TILE = 256;

template <class T>
__device__ __forceinline__ void unpack_two(const unsigned& pair, float (&values)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) values[i] = to_float(reinterpret_cast<const T*>(&pair)[i]);
}

// x (m, k), w1 (n, k): n / 2 gates, then as many ups. pre (m, n), hidden (m, n / 2); n is a multiple of 256.
template <class T, int LAG>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    swiglu_forward(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w1, const __grid_constant__ TensorMap pre,
                   const __grid_constant__ TensorMap hidden, int m, int n, int k, int band) {
    extern __shared__ __align__(1024) char dynamic[];
    walk_tiles<T, false, false, COLUMNS_OF_TILE, LAG, 4, TILE_SLABS, true>(
        x, x, w1, m, n, k, k, 1, band, dynamic, [&](float(&d)[COLUMNS_OF_TILE / 2], int row, int column, char* slabs, int& slab) {
            float(&gates)[COLUMNS_OF_TILE / 4] = reinterpret_cast<float(&)[COLUMNS_OF_TILE / 4]>(d);
            const float(&ups)[COLUMNS_OF_TILE / 4] = reinterpret_cast<const float(&)[COLUMNS_OF_TILE / 4]>(d[COLUMNS_OF_TILE / 4]);
            put_tile<T, false>(pre, slabs, slab, gates, row, column / 2);
            put_tile<T, false>(pre, slabs, slab, ups, row, (n + column) / 2);
#pragma unroll
            for (int i = 0; i < COLUMNS_OF_TILE / 4; ++i) gates[i] = gated<SILU, T>(gates[i], ups[i]);
            put_tile<T, false>(hidden, slabs, slab, gates, row, column / 2);
        });
}

// Shared memory of swiglu_backward: for each warpgroup SETS pairs of pieces of 64 rows and WIDTH columns, of gates and of ups, whose gradients take their
// places. With HIDDEN one piece more, and room for three stages; without, pieces of half the width and a fourth stage.
constexpr int SETS = 2;
template <bool HIDDEN>
struct Pieces {
    static constexpr int WIDTH = HIDDEN ? 64 : 32, STAGES = HIDDEN ? 3 : 4, BYTES = 64 * 2 * WIDTH, COUNT = COLUMNS_OF_TILE / WIDTH;
    static constexpr int SLABS = CONSUMERS * (2 * SETS + HIDDEN) * BYTES / (64 * ROW_BYTES);
    // Where lane's 16 bytes of columns 8 * column ... of a row are: swizzled as the copy engine does it.
    __device__ static int at(int row, int column) { return row * (2 * WIDTH) + ((column ^ (WIDTH == 64 ? row % 8 : row / 2 % 4)) << 4); }
};

// grad (m, k), w2 (k, n), pre and d_pre (m, 2 n), gates before ups; hidden (m, n). n is a multiple of 128.
template <class T, bool HIDDEN, int LAG>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    swiglu_backward(const __grid_constant__ TensorMap grad, const __grid_constant__ TensorMap w2, const __grid_constant__ TensorMap pre,
                    const __grid_constant__ TensorMap d_pre, const __grid_constant__ TensorMap hidden, int m, int n, int k, int band) {
    using Piece = Pieces<HIDDEN>;
    constexpr int WIDTH = Piece::WIDTH, STAGES = Piece::STAGES, SLABS = Piece::SLABS, BYTES = Piece::BYTES, COUNT = Piece::COUNT;
    using Memory = Layout<T, TILE_ROWS, COLUMNS_OF_TILE, STAGES, SLABS>;
    extern __shared__ __align__(1024) char dynamic[];
    const Memory memory(dynamic);
    const int warpgroup = threadIdx.x / GROUP, thread = threadIdx.x % GROUP, lane = threadIdx.x % 32, warp_row = thread / 32 * 16;
    Mbarrier* const arrived = memory.empty() + STAGES;  // SETS of each warpgroup
    if (threadIdx.x == 0)
        for (int i = 0; i < SETS * CONSUMERS; ++i) mbarrier_init(arrived + i, 1);  // walk_tiles has the fence, and where all meet
    const int first_fetch = min(3, (k + Memory::DEPTH - 1) / Memory::DEPTH - 1);  // by then the last tile's stores have left their slabs
    auto fetch = [&](int piece, int row, int column) {
        char* const gates = memory.slab(warpgroup * (SLABS / CONSUMERS)) + piece % SETS * 2 * BYTES;
        Mbarrier* const barrier = arrived + warpgroup * SETS + piece % SETS;
        mbarrier_arrive_expect_tx(barrier, 2 * BYTES);
        tma_load(gates, pre, barrier, column + WIDTH * piece, row);
        tma_load(gates + BYTES, pre, barrier, n + column + WIDTH * piece, row);
    };
    walk_tiles<T, false, true, COLUMNS_OF_TILE, LAG, STAGES, SLABS>(
        grad, grad, w2, m, n, k, k, 1, band, dynamic,
        [&](float(&d)[COLUMNS_OF_TILE / 2], int row, int column, char* slabs, int&) {
#pragma unroll
            for (int piece = 0; piece < COUNT; ++piece) {
                char* const gates = slabs + piece % SETS * 2 * BYTES;
                char* const hiddens = slabs + 2 * SETS * BYTES;
                mbarrier_wait(arrived + warpgroup * SETS + piece % SETS, piece / SETS % 2);
                if (HIDDEN) {
                    if (thread == 0) tma_wait_read<0>();
                    named_barrier_sync(1 + warpgroup, GROUP);
                }
#pragma unroll
                for (int pair = 0; pair < WIDTH / 16; ++pair) {  // of blocks of 8 columns
                    const int at = Piece::at(warp_row + lane % 16, 2 * pair + lane / 16);
                    unsigned gate[4], up[4], out[4];
                    ldmatrix(gate, gates + at);
                    ldmatrix(up, gates + BYTES + at);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float g[2], u[2], h[2];
                        unpack_two<T>(gate[i], g);
                        unpack_two<T>(up[i], u);
#pragma unroll
                        for (int j = 0; j < 2; ++j) {
                            const float inner = d[WIDTH / 2 * piece + 8 * pair + 2 * i + j], s = sigmoid<T>(g[j]), silu = g[j] * s;
                            h[j] = silu * u[j];
                            g[j] = inner * u[j] * fmaf(silu, 1.0f - s, s);
                            u[j] = inner * silu;
                        }
                        gate[i] = pack_pair<T>(g[0], g[1]);
                        up[i] = pack_pair<T>(u[0], u[1]);
                        out[i] = pack_pair<T>(h[0], h[1]);
                    }
                    stmatrix(gates + at, gate);
                    stmatrix(gates + BYTES + at, up);
                    if (HIDDEN) stmatrix(hiddens + at, out);
                    if (pair == WIDTH / 32 - 1 && piece > 0 && piece + 1 < COUNT && thread == 0) {
                        if (!HIDDEN) tma_wait_read<0>();
                        fetch(piece + 1, row, column);
                    }
                }
                fence_proxy_async_shared();
                named_barrier_sync(1 + warpgroup, GROUP);
                if (thread == 0 && column + WIDTH * piece < n) {
                    tma_store(d_pre, gates, column + WIDTH * piece, row);
                    tma_store(d_pre, gates + BYTES, n + column + WIDTH * piece, row);
                    if (HIDDEN) tma_store(hidden, hiddens, column + WIDTH * piece, row);
                    tma_commit();
                }
            }
        },
        [&](int step, int row, int column) {
            if (thread != 0 || step != first_fetch) return;
            tma_wait_read<0>();
            for (int piece = 0; piece < SETS; ++piece) fetch(piece, row, column);
        });
}

// x (m, k), w (n, k), heads of HEAD rows; the first `turned` columns of x w^T are turned. Rows are tokens, `seq` of them a sequence; angles (angle_rows,
// HEAD) has cosines, then sines, of a position.
template <class T, int HEAD, int LAG>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    turned_projection(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap out, int m, int n, int k,
                      int band, const float* angles, const void* positions, Positions layout, int angle_rows, int seq, int turned) {
    extern __shared__ __align__(1024) char dynamic[];
    walk_tiles<T, false, false, COLUMNS_OF_TILE, LAG>(
        x, x, w, m, n, k, k, 1, band, dynamic, [&](float(&d)[COLUMNS_OF_TILE / 2], int row, int column, char* slabs, int& slab) {
            const int lane = threadIdx.x % 32, first = row + threadIdx.x % GROUP / 32 * 16 + lane / 4;
            if (column < turned) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int token = min(first + 8 * h, m - 1);
                    const long long position = position_of(positions, layout, token / seq, token % seq);
                    const bool known = position >= 0 && position < angle_rows;
                    const float* const of_token = angles + (known ? position : 0) * HEAD + lane % 4 * 2;
#pragma unroll
                    for (int part = 0; part < HEAD / 16; ++part) {
                        float2 cosine = *reinterpret_cast<const float2*>(of_token + 8 * part);
                        const float2 sine = *reinterpret_cast<const float2*>(of_token + HEAD / 2 + 8 * part);
                        if (!known) cosine = make_float2(NAN, NAN);
#pragma unroll
                        for (int head = 0; head < COLUMNS_OF_TILE / HEAD; ++head) {
                            if (column + head * HEAD >= turned) continue;
                            const int low = head * HEAD / 2 + 4 * part + 2 * h, high = low + HEAD / 4;
                            const float a[2] = {d[low], d[low + 1]}, b[2] = {d[high], d[high + 1]};
                            d[low] = a[0] * cosine.x - b[0] * sine.x;
                            d[low + 1] = a[1] * cosine.y - b[1] * sine.y;
                            d[high] = b[0] * cosine.x + a[0] * sine.x;
                            d[high + 1] = b[1] * cosine.y + a[1] * sine.y;
                        }
                    }
                }
            }
            put_tile<T, false>(out, slabs, slab, d, row, column);
        });
}
