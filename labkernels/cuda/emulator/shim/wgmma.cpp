// wgmma: the matrix product of a warpgroup (128 threads), D (64 x n) += A (64 x k) B (k x n), as the hardware reads its operands.
#include <cstring>
#include <string>

#include "lk_async.h"
#include "machine.h"
#include "sanitizer.h"

namespace lk {
namespace {

constexpr unsigned kRows = 64, kGroupThreads = 128, kStepBytes = 32;    // a step along K is 32 bytes of every operand
const char* const kWgmma = "wgmma";

struct Operand {                    // one matrix in shared memory, as its descriptor says
    unsigned start, leading, stride, swizzle_bytes;
    bool transposed;                // the axis that is not K is the dense one

    Operand(std::uint64_t descriptor, bool transpose) : transposed(transpose) {
        static constexpr unsigned swizzles[4] = {0, 128, 64, 32};
        start = static_cast<unsigned>(descriptor & 0x3fff) << 4;
        leading = static_cast<unsigned>(descriptor >> 16 & 0x3fff) << 4;
        stride = static_cast<unsigned>(descriptor >> 32 & 0x3fff) << 4;
        swizzle_bytes = swizzles[descriptor >> 62];
    }
    // Offset in shared memory of the 16 bytes that hold element (`row` of M or N, `column` of K), and the byte in them.
    unsigned offset(unsigned row, unsigned column, unsigned element_bytes) const {
        unsigned where;
        if (!transposed) {
            const unsigned byte = column * element_bytes;
            where = swizzle_bytes ? row / 8 * stride + row % 8 * swizzle_bytes + byte
                                  : row / 8 * stride + row % 8 * 16 + byte / 16 * leading + byte % 16;
        } else {
            const unsigned byte = row * element_bytes;
            where = swizzle_bytes ? byte / swizzle_bytes * leading + byte % swizzle_bytes + column % 8 * swizzle_bytes + column / 8 * stride
                                  : byte / 16 * stride + byte % 16 + column % 8 * 16 + column / 8 * leading;
        }
        where += start;
        return where ^ (where >> 3 & (swizzle_bytes ? swizzle_bytes - 16 : 0));
    }
};

unsigned bytes_of(ElementKind kind) { return kind == kTf32 ? 4 : kind == kFloat16 || kind == kBfloat16 ? 2 : 1; }

float small_float(unsigned bits, unsigned exponent_bits, unsigned fraction_bits, bool has_infinity) {
    const unsigned all_ones = (1u << exponent_bits) - 1;
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const unsigned exponent = bits >> fraction_bits & all_ones, fraction = bits & ((1u << fraction_bits) - 1);
    float magnitude;
    if (has_infinity && exponent == all_ones) magnitude = fraction ? __builtin_nanf("") : __builtin_inff();
    else if (!has_infinity && exponent == all_ones && fraction == (1u << fraction_bits) - 1) magnitude = __builtin_nanf("");
    else if (exponent) magnitude = __builtin_ldexpf(static_cast<float>((1u << fraction_bits) + fraction), static_cast<int>(exponent) - bias - static_cast<int>(fraction_bits));
    else magnitude = __builtin_ldexpf(static_cast<float>(fraction), 1 - bias - static_cast<int>(fraction_bits));
    return bits >> (exponent_bits + fraction_bits) & 1 ? -magnitude : magnitude;
}

float value_of(const void* element, ElementKind kind) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, element, bytes_of(kind));
    switch (kind) {
        case kFloat16: return small_float(bits, 5, 10, true);
        case kFloat8E4M3: return small_float(bits, 4, 3, false);
        case kFloat8E5M2: return small_float(bits, 5, 2, true);
        case kBfloat16: bits <<= 16; break;
        default: bits &= 0xffffe000u;           // tf32: the last 13 bits of a float32 are not looked at
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

template <class Number> Number number_of(const void* element, ElementKind kind) { return value_of(element, kind); }
template <> int number_of<int>(const void* element, ElementKind) { return *static_cast<const signed char*>(element); }

const void* element_at(const Operand& operand, unsigned row, unsigned column, unsigned element_bytes) {
    const void* place = shared_pointer(operand.offset(row, column, element_bytes));
    if (!place) fail("wgmma: a matrix descriptor leads outside shared memory");
    return place;
}

template <class Number> struct Buffers { Number a[kRows][kStepBytes], b[kStepBytes][256], d[kRows][256]; };

template <class Number> __attribute__((optimize("O3"))) void multiply(Buffers<Number>& buffers, unsigned n, unsigned k) {
    for (unsigned row = 0; row < kRows; ++row)
        for (unsigned step = 0; step < k; ++step) {
            const Number a = buffers.a[row][step];
            for (unsigned column = 0; column < n; ++column) buffers.d[row][column] += a * buffers.b[step][column];
        }
}

// Row and column in D of a thread's accumulator `i`; row and column (of 32-bit registers) in A of its register `i`.
unsigned d_row(unsigned thread, unsigned i) { return thread / 32 * 16 + thread % 32 / 4 + (i & 2 ? 8 : 0); }
unsigned d_column(unsigned thread, unsigned i) { return i / 4 * 8 + thread % 4 * 2 + (i & 1); }
unsigned a_row(unsigned thread, unsigned i) { return thread / 32 * 16 + thread % 32 / 4 + (i & 1 ? 8 : 0); }
unsigned a_register(unsigned thread, unsigned i) { return thread % 4 + (i & 2 ? 4 : 0); }

template <class Number> void execute(const Wgmma* const* threads) {
    static thread_local std::unique_ptr<Buffers<Number>> memory;        // not on a fiber's small stack, nor in thread-local storage, which is small too
    if (!memory) memory.reset(new Buffers<Number>);
    Buffers<Number>& buffers = *memory;
    const Wgmma& common = *threads[0];
    const ElementKind kind = common.kind;
    const unsigned element_bytes = bytes_of(kind), k = kStepBytes / element_bytes, n = common.n;
    const Operand a(common.descriptor_a, common.transpose_a), b(common.descriptor_b, common.transpose_b);
    for (unsigned column = 0; column < n; ++column)
        for (unsigned step = 0; step < k; ++step)
            buffers.b[step][column] = number_of<Number>(element_at(b, column, step, element_bytes), kind);
    if (common.a) {
        for (unsigned thread = 0; thread < kGroupThreads; ++thread)
            for (unsigned i = 0; i < 4; ++i)
                for (unsigned part = 0; part < 4 / element_bytes; ++part)
                    buffers.a[a_row(thread, i)][a_register(thread, i) * (4 / element_bytes) + part] =
                        number_of<Number>(reinterpret_cast<const char*>(threads[thread]->a + i) + part * element_bytes, kind);
    } else {
        for (unsigned row = 0; row < kRows; ++row)
            for (unsigned step = 0; step < k; ++step) buffers.a[row][step] = number_of<Number>(element_at(a, row, step, element_bytes), kind);
    }
    for (unsigned thread = 0; thread < kGroupThreads; ++thread)
        for (unsigned i = 0; i < n / 2; ++i)
            buffers.d[d_row(thread, i)][d_column(thread, i)] = common.accumulate ? static_cast<const Number*>(threads[thread]->d)[i] : Number(0);
    multiply(buffers, n, k);
    for (unsigned thread = 0; thread < kGroupThreads; ++thread)
        for (unsigned i = 0; i < n / 2; ++i) static_cast<Number*>(threads[thread]->d)[i] = buffers.d[d_row(thread, i)][d_column(thread, i)];
}

// What the sanitizer must know of the operands in shared memory: each 16 bytes, once.
void watch_operand(Worker& worker, const Operand& operand, unsigned rows, unsigned element_bytes, void* pc) {
    const unsigned k = kStepBytes / element_bytes, per_piece = 16 / element_bytes;
    for (unsigned row = 0; row < rows; row += operand.transposed ? per_piece : 1)
        for (unsigned column = 0; column < k; column += operand.transposed ? 1 : per_piece) {
            const void* place = element_at(operand, row, column, element_bytes);
            worker.sanitizer->agent_access(worker, place, 16, kRead, pc);
            worker.sanitizer->check_swizzle(worker, place, operand.swizzle_bytes, pc);
        }
}

}  // namespace

void wgmma(const Wgmma& instruction) {
    Worker& worker = this_worker();
    Thread& thread = this_thread();
    void* pc = __builtin_return_address(0);
    thread.last_pc = pc;
    const unsigned group = thread.index / kGroupThreads;
    if ((group + 1) * kGroupThreads > worker.threads.size()) fail("wgmma: a warpgroup is 128 threads, and this one is not complete");
    if (worker.sanitizer)
        worker.sanitizer->wgmma_registers(worker, thread, instruction.d, instruction.n / 2 * 4, instruction.a, instruction.a ? 16 : 0, pc);
    thread.data = const_cast<Wgmma*>(&instruction);
    if (++worker.warpgroup_arrived[group] < kGroupThreads) return wait_in(worker, thread, kWgmma, pc);
    worker.warpgroup_arrived[group] = 0;
    const Wgmma* threads[kGroupThreads];
    Thread* members = &worker.threads[group * kGroupThreads];
    for (unsigned i = 0; i < kGroupThreads; ++i) {
        threads[i] = static_cast<const Wgmma*>(members[i].data);
        const Wgmma &mine = *threads[i], &first = *threads[0];
        if (mine.n != first.n || mine.kind != first.kind || mine.descriptor_a != first.descriptor_a ||
            mine.descriptor_b != first.descriptor_b || mine.accumulate != first.accumulate || !mine.a != !first.a)
            fail("wgmma: the threads of a warpgroup must all give the same instruction and the same descriptors");
    }
    if (worker.sanitizer) {
        worker.sanitizer->begin_wgmma(worker, members);
        const unsigned element_bytes = bytes_of(instruction.kind);
        if (!instruction.a)
            watch_operand(worker, Operand(instruction.descriptor_a, instruction.transpose_a), kRows, element_bytes, pc);
        watch_operand(worker, Operand(instruction.descriptor_b, instruction.transpose_b), instruction.n, element_bytes, pc);
    }
    worker.busy = true;
    if (instruction.kind == kInt8) execute<int>(threads);
    else execute<float>(threads);
    worker.busy = false;
    for (unsigned i = 0; i < kGroupThreads; ++i)
        if (&members[i] != &thread) make_ready(worker, members[i]);
}

void wgmma_fence() {
    Worker& worker = this_worker();
    if (worker.sanitizer) worker.sanitizer->wgmma_fence(this_thread());
}

void wgmma_commit() {
    Worker& worker = this_worker();
    if (worker.sanitizer) worker.sanitizer->commit_wgmma(this_thread());
}

void wgmma_wait(unsigned pending) {
    Worker& worker = this_worker();
    if (worker.sanitizer) worker.sanitizer->wait_wgmma(worker, this_thread(), pending);
}

}  // namespace lk
