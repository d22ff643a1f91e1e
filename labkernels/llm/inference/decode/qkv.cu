// Norm, projection to queries, keys and values, RoPE and the write into the cache, in one launch: the stream of gemv with an epilogue of its own.
//   Idea      A tile of 16 rows of the weight is 8 pairs that RoPE turns: rows i and i + head_dim / 2 of a head. Both sums meet in one thread, which
//             turns them and puts them where attention looks for them. The projection never is in memory.
//   Predicts  One launch of 2 us and one trip less a layer: 3% of a token of Llama-3.2-1B.
//   Measured  Not alone: data/measured/h200/engine.csv has whole steps, 0.68 ms of 82 launches, with it.
//   Wastes    12.6 MB are read in 3 us, and every launch takes 1 us to get going: a persistent kernel would save that.
#include "../../../gemv/stream.cuh"
#include "../../../quant/gemv_formats.cuh"

struct CachePlaces {
    long long page, head, slot;  // strides, in elements
    int heads, kv_heads, head_dim;
    unsigned inverse;  // 2^18 / tiles of a head, rounded up
};

template <class T>
struct Turned {
    T *q, *k_cache, *v_cache;  // q (m, heads, head_dim)
    const float* turns;        // (m, head_dim): cosines, then sines, of each row's position
    const int2* spots;         // (m,): page and place in it of the new token, page -1: nowhere
    CachePlaces places;

    // A tile's head, and the first of its 8 pairs: tile / tiles and tile % tiles * 8 without a division, for tiles of at most 16 and fewer than 2^14.
    __device__ int head_of(int tile) const { return static_cast<int>(static_cast<unsigned>(tile) * places.inverse >> 18); }
    __device__ int first_pair(int tile) const { return 8 * tile - head_of(tile) * (places.head_dim / 2); }
    __device__ int row(int tile, int h, int r) const { return head_of(tile) * places.head_dim + first_pair(tile) + r + h * (places.head_dim / 2); }
    struct Held {
        int2 spot;
        float cosine, sine;
    };
    __device__ Held hold(int x_row, int tile, int r) const {
        const float* const turn = turns + x_row * places.head_dim + first_pair(tile) + r;
        return {spots[x_row], turn[0], turn[places.head_dim / 2]};
    }
    __device__ void put(const Held& held, int x_row, int tile, int r, float a, float b) const {
        const int half = places.head_dim / 2, head = head_of(tile), pair = first_pair(tile) + r;
        T* target = q + (static_cast<long long>(x_row) * places.heads + head) * places.head_dim;
        if (head >= places.heads) {
            if (held.spot.x < 0) return;
            const bool value = head >= places.heads + places.kv_heads;
            const int of_cache = head - places.heads - (value ? places.kv_heads : 0);
            target = (value ? v_cache : k_cache) + held.spot.x * places.page + of_cache * places.head + held.spot.y * places.slot;
        }
        if (head < places.heads + places.kv_heads) {
            const float turned = a * held.cosine - b * held.sine;
            b = b * held.cosine + a * held.sine;
            a = turned;
        }
        target[pair] = from_float<T>(a);
        target[pair + half] = from_float<T>(b);
    }
};

// As gemv_quantised, with Whole<T> as gemv_stream; head_dim a multiple of 16. NORM: of x, by norm_weight, which is not read otherwise.
template <class Format, bool NORM, int TILES, int WARPS, int SHARE, int AHEAD, int BLOCKS>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    qkv_stream(const typename Format::T* x, const void* w, const void* scales, const float* codebook, const typename Format::T* norm_weight,
               typename Format::T* q, typename Format::T* k_cache, typename Format::T* v_cache, const float* turns, const int2* spots,
               CachePlaces places, Sizes sizes, int table_bytes) {
    extern __shared__ __align__(16) unsigned char shared[];
    const Turned<typename Format::T> epilogue{q, k_cache, v_cache, turns, spots, places};
    constexpr bool NEXT_AT_ONCE = false;  // attention reads lengths before it waits
    stream<Format, NORM, TILES, WARPS, SHARE, AHEAD, NEXT_AT_ONCE>(epilogue, x, w, scales, codebook, norm_weight, sizes, shared, table_bytes);
}
