// nvcuda::wmma: matrix fragments of a warp whose layout is nobody's business. In place of CUDA's <mma.h>.
//
// Here element i of lane l is element 32 * i + l of the fragment's matrix, each held once (a GPU holds those of A and B twice in
// some shapes; num_elements says how many there are). Lanes read and write their own elements, so that the sanitizer sees each.
// Sums are made in float32 (half accumulators are rounded at the end), integers and doubles in their own type.
#pragma once

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };
namespace precision { struct tf32; }

}  // namespace wmma
}  // namespace nvcuda

namespace lk {
namespace wmma {

using namespace nvcuda::wmma;

template <class T> struct Stored { using type = T; };                  // what x[] and memory hold
template <> struct Stored<precision::tf32> { using type = float; };

template <class T> constexpr bool is_byte = std::is_same<T, signed char>::value || std::is_same<T, unsigned char>::value;
template <class T> constexpr bool is_half = std::is_same<T, __half>::value || std::is_same<T, __nv_bfloat16>::value;
template <class T> constexpr bool has_shape(int m, int n, int k) {
    if (is_half<T> || is_byte<T> || std::is_same<T, float>::value || std::is_same<T, int>::value) {
        const bool wide = k == 16 && m * n == 256 && (m == 8 || m == 16 || m == 32);
        return wide || (std::is_same<T, float>::value && m == 16 && n == 16 && k == 8);
    }
    if (std::is_same<T, precision::tf32>::value) return m == 16 && n == 16 && k == 8;
    return std::is_same<T, double>::value && m == 8 && n == 8 && k == 4;
}

__attribute__((no_sanitize("thread"))) inline void run_nothing(unsigned mask, void**) {
    if (mask != 0xffffffffu) fail("wmma: all 32 lanes must take part, and some have left the kernel or do not exist");
}
LK_DEVICE void meet(const char* what) { collective(0xffffffffu, nullptr, run_nothing, what); }

// A pointer must be a multiple of 32 bytes, and the distance of rows (or columns) one of 16 bytes.
LK_DEVICE void check_matrix(const void* matrix, std::size_t bytes_apart, const char* what) {
    if (reinterpret_cast<std::uintptr_t>(matrix) % 32 == 0 && bytes_apart % 16 == 0) return;
    char text[160];
    std::snprintf(text, sizeof text, "%s: the matrix must begin on a multiple of 32 bytes, its leading dimension be one of 16 bytes", what);
    fail(text);
}

template <class A, class B, class C> struct Product {
    const typename Stored<A>::type* a;
    const typename Stored<B>::type* b;
    const C* c;
};

template <class T> __attribute__((no_sanitize("thread"))) auto value_of(typename Stored<T>::type x) {
    if constexpr (std::is_same<T, precision::tf32>::value) return bits<float>(bits<unsigned>(x) & 0xffffe000u);
    else if constexpr (std::is_same<T, __half>::value) return __half2float(x);
    else if constexpr (std::is_same<T, __nv_bfloat16>::value) return __bfloat162float(x);
    else if constexpr (is_byte<T>) return static_cast<int>(x);
    else return x;
}

}  // namespace wmma
}  // namespace lk

namespace nvcuda {
namespace wmma {

// M x N x K: A is M x K, B is K x N, accumulators are M x N. T: __half, __nv_bfloat16, precision::tf32, signed and unsigned char, double.
template <class Use, int M, int N, int K, class T, class Layout = void> class fragment {
    static_assert(lk::wmma::has_shape<T>(M, N, K), "wmma has no fragments of this shape and type (sub-byte types run on a GPU only)");
    static_assert(std::is_same<Use, accumulator>::value == std::is_same<Layout, void>::value,
                  "matrix_a and matrix_b have a layout, accumulators none");
public:
    static constexpr int rows = std::is_same<Use, matrix_b>::value ? K : M, columns = std::is_same<Use, matrix_a>::value ? K : N;
    static constexpr int num_elements = rows * columns / 32, num_storage_elements = num_elements;
    using element_type = T;
    using storage_element_type = typename lk::wmma::Stored<T>::type;
    storage_element_type x[num_elements];
};

inline __attribute__((always_inline)) float __float_to_tf32(float value) {
    const unsigned word = lk::bits<unsigned>(value);
    return (word & 0x7f800000u) == 0x7f800000u ? value : lk::bits<float>((word + 0x1000u) & 0xffffe000u);
}

template <class Use, int M, int N, int K, class T, class Layout, class Value>
inline __attribute__((always_inline)) void fill_fragment(fragment<Use, M, N, K, T, Layout>& target, const Value& value) {
    for (auto& element : target.x) element = value;
}

template <class Fragment, class Element>
inline __attribute__((always_inline)) void lk_load(Fragment& target, const Element* source, unsigned leading, bool by_rows) {
    lk::wmma::check_matrix(source, leading * sizeof(Element), "load_matrix_sync");
    for (int i = 0; i < Fragment::num_elements; ++i) {
        const unsigned place = 32 * i + lk::lane(), row = place / Fragment::columns, column = place % Fragment::columns;
        target.x[i] = source[by_rows ? row * leading + column : column * leading + row];
    }
    lk::wmma::meet("load_matrix_sync");
}

template <class Use, int M, int N, int K, class T, class Layout>
inline __attribute__((always_inline)) void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& target,
                                                            const typename lk::wmma::Stored<T>::type* source, unsigned leading) {
    lk_load(target, source, leading, std::is_same<Layout, row_major>::value);
}

template <int M, int N, int K, class T>
inline __attribute__((always_inline)) void load_matrix_sync(fragment<accumulator, M, N, K, T>& target, const T* source, unsigned leading,
                                                            layout_t layout) {
    lk_load(target, source, leading, layout == mem_row_major);
}

template <int M, int N, int K, class T>
inline __attribute__((always_inline)) void store_matrix_sync(T* target, const fragment<accumulator, M, N, K, T>& source, unsigned leading,
                                                             layout_t layout) {
    lk::wmma::check_matrix(target, leading * sizeof(T), "store_matrix_sync");
    lk::wmma::meet("store_matrix_sync");
    for (int i = 0; i < source.num_elements; ++i) {
        const unsigned place = 32 * i + lk::lane(), row = place / N, column = place % N;
        target[layout == mem_row_major ? row * leading + column : column * leading + row] = source.x[i];
    }
}

}  // namespace wmma
}  // namespace nvcuda

namespace lk {
namespace wmma {

template <int M, int N, int K, class A, class B, class C, class D> struct ProductLane : Product<A, B, C> {
    D* d;
    bool saturate;
};

template <int M, int N, int K, class A, class B, class C, class D>
__attribute__((no_sanitize("thread"))) void run_product(unsigned mask, void** lanes) {
    run_nothing(mask, lanes);
    using Sum = decltype(value_of<A>({}) * value_of<B>({}));
    Sum a[M][K], b[K][N], sum[M][N];
    const auto lane = [&](int place) -> auto& { return *static_cast<ProductLane<M, N, K, A, B, C, D>*>(lanes[place % 32]); };
    for (int i = 0; i < M * K; ++i) a[i / K][i % K] = value_of<A>(lane(i).a[i / 32]);
    for (int i = 0; i < K * N; ++i) b[i / N][i % N] = value_of<B>(lane(i).b[i / 32]);
    for (int i = 0; i < M * N; ++i) sum[i / N][i % N] = value_of<C>(lane(i).c[i / 32]);
    for (int row = 0; row < M; ++row)
        for (int column = 0; column < N; ++column) {
            long long exact = 0;
            for (int i = 0; i < K; ++i) {
                if constexpr (std::is_same<Sum, int>::value) exact += a[row][i] * b[i][column];
                else sum[row][column] += a[row][i] * b[i][column];
            }
            if constexpr (std::is_same<Sum, int>::value) {
                exact += sum[row][column];
                if (lane(0).saturate) exact = exact > 2147483647 ? 2147483647 : exact < -2147483647 - 1 ? -2147483647 - 1 : exact;
                sum[row][column] = static_cast<int>(exact);
            }
        }
    for (int i = 0; i < M * N; ++i) {
        if constexpr (std::is_same<D, __half>::value) lane(i).d[i / 32] = __float2half_rn(sum[i / N][i % N]);
        else lane(i).d[i / 32] = sum[i / N][i % N];
    }
}

}  // namespace wmma
}  // namespace lk

namespace nvcuda {
namespace wmma {

// d = a * b + c. d may be c.
template <int M, int N, int K, class A, class B, class LayoutA, class LayoutB, class C, class D>
inline __attribute__((always_inline)) void mma_sync(fragment<accumulator, M, N, K, D>& d, const fragment<matrix_a, M, N, K, A, LayoutA>& a,
                                                    const fragment<matrix_b, M, N, K, B, LayoutB>& b,
                                                    const fragment<accumulator, M, N, K, C>& c, bool saturate = false) {
    static_assert(std::is_same<A, B>::value, "A and B must have the same type");
    static_assert(std::is_same<C, D>::value || std::is_same<A, __half>::value, "C and D must have the same type");
    constexpr bool of_halves = std::is_same<A, __half>::value && std::is_same<D, __half>::value;
    constexpr bool of_doubles = std::is_same<A, double>::value && std::is_same<D, double>::value;
    constexpr bool of_bytes = lk::wmma::is_byte<A> && std::is_same<D, int>::value;
    constexpr bool of_floats = !lk::wmma::is_byte<A> && !std::is_same<A, double>::value && std::is_same<D, float>::value;
    static_assert(of_halves || of_doubles || of_bytes || of_floats, "wmma has no product of these types");
    lk::wmma::ProductLane<M, N, K, A, B, C, D> own{{a.x, b.x, c.x}, d.x, saturate};
    lk::collective(0xffffffffu, &own, lk::wmma::run_product<M, N, K, A, B, C, D>, "mma_sync");
}

}  // namespace wmma
}  // namespace nvcuda
