// Norm, projection to queries, keys and values, RoPE and the write into the cache, in one launch: the stream of gemv with an epilogue of its own.
//   Idea      A tile of 16 rows of the weight is 8 pairs that RoPE turns: rows i and i + head_dim / 2 of a head. Both sums meet in one thread, which
//             turns them and puts them where attention looks for them. The projection never is in memory.
//   Predicts  One launch of 2 us and one trip less a layer: 3% of a token of Llama-3.2-1B.
//   Measured  bench_engine.py
//   Wastes    12.6 MB are read in 3 us, and every launch takes 1 us to get going: a persistent kernel would save that.
#include "../../../gemv/stream.cuh"
#include "../../../quant/gemv_formats.cuh"

struct CachePlaces {
    long long page, head, slot;  // strides, in elements
    int page_size, heads, kv_heads, head_dim;
    long long all_slots;
};

template <class T>
struct Turned {
    T *q, *k_cache, *v_cache;  // q (m, heads, head_dim)
    const float* turns;        // (m, head_dim): cosines, then sines, of each row's position
    const long long* slots;    // (m,), -1: nowhere
    CachePlaces places;

    __device__ int row(int tile, int h, int r) const {
        const int half = places.head_dim / 2, tiles = half / 8;  // of a head
        return tile / tiles * places.head_dim + tile % tiles * 8 + r + h * half;
    }
    __device__ void put(int x_row, int tile, int r, float a, float b) const {
        const int half = places.head_dim / 2, tiles = half / 8, head = tile / tiles, pair = tile % tiles * 8 + r;
        T* target = q + (static_cast<long long>(x_row) * places.heads + head) * places.head_dim;
        if (head >= places.heads) {
            const long long slot = slots[x_row];
            if (slot < 0 || slot >= places.all_slots) return;
            const bool value = head >= places.heads + places.kv_heads;
            const int of_cache = head - places.heads - (value ? places.kv_heads : 0);
            target = (value ? v_cache : k_cache) + slot / places.page_size * places.page + of_cache * places.head + slot % places.page_size * places.slot;
        }
        if (head < places.heads + places.kv_heads) {
            const float cosine = turns[x_row * places.head_dim + pair], sine = turns[x_row * places.head_dim + half + pair];
            const float turned = a * cosine - b * sine;
            b = b * cosine + a * sine;
            a = turned;
        }
        target[pair] = from_float<T>(a);
        target[pair + half] = from_float<T>(b);
    }
};

// As gemv_quantised, with Whole<T> as gemv_stream; head_dim a multiple of 16.
template <class Format, int TILES, int WARPS, int AHEAD, int BLOCKS>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    qkv_stream(const typename Format::T* x, const void* w, const void* scales, const float* codebook, const typename Format::T* norm_weight,
               typename Format::T* q, typename Format::T* k_cache, typename Format::T* v_cache, const float* turns, const long long* slots,
               CachePlaces places, Sizes sizes, int table_bytes) {
    extern __shared__ __align__(16) unsigned char shared[];
    const Turned<typename Format::T> epilogue{q, k_cache, v_cache, turns, slots, places};
    stream<Format, true, TILES, WARPS, AHEAD>(epilogue, x, w, scales, codebook, norm_weight, sizes, shared, table_bytes);
}
