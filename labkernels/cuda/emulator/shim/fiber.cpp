// Fibers: stacks, and the switch between them (callee-saved registers only; glibc's swapcontext would cost a system call).
#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "machine.h"

namespace lk {
namespace {

constexpr std::size_t kStackBytes = 128 * 1024;
constexpr unsigned kStacksPerSlab = 64;

std::mutex pool_mutex;
std::vector<Stack*> pool;           // stacks of finished workers; they are never given back to the system

void add_slab(std::vector<Stack*>& stacks) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t stride = kStackBytes + page;
    char* slab = static_cast<char*>(mmap(nullptr, stride * kStacksPerSlab, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (slab == MAP_FAILED) throw std::bad_alloc();
    for (unsigned i = 0; i < kStacksPerSlab; ++i) {
        char* guard = slab + i * stride;
        mprotect(guard, page, PROT_NONE);
        stacks.push_back(new Stack{guard, guard + page, guard + stride});
    }
}

}  // namespace

Stack* take_stack(Worker& worker) {
    if (worker.stacks.empty()) {
        worker.busy = true;
        std::lock_guard<std::mutex> lock(pool_mutex);
        if (pool.empty()) add_slab(pool);
        const std::size_t take = pool.size() < kStacksPerSlab ? pool.size() : kStacksPerSlab;
        worker.stacks.assign(pool.end() - take, pool.end());
        pool.resize(pool.size() - take);
    }
    worker.busy = false;
    Stack* stack = worker.stacks.back();
    worker.stacks.pop_back();
    return stack;
}

void return_stacks(Worker& worker) {
    std::lock_guard<std::mutex> lock(pool_mutex);
    pool.insert(pool.end(), worker.stacks.begin(), worker.stacks.end());
    worker.stacks.clear();
}

// Stacks lie a page multiple apart, so their tops would all fall into one set of the L1 cache: shift each by some lines.
static char* shifted_top(Stack* stack, unsigned index) { return stack->top - 64 - (index * 5 % 48) * 64; }

#if defined(__x86_64__)
asm(R"(
    .text
    .globl lk_switch
    .type lk_switch, @function
lk_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    .globl lk_resume
lk_resume:
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size lk_switch, .-lk_switch
)");

void* first_frame(Stack* stack, unsigned index, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(shifted_top(stack, index));
    *--sp = nullptr;                            // entry never returns; this keeps the stack aligned as after a call
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--sp = nullptr;
    return sp;
}
#elif defined(__aarch64__)
asm(R"(
    .text
    .globl lk_switch
    .type lk_switch, %function
lk_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    .globl lk_resume
lk_resume:
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size lk_switch, .-lk_switch
)");

void* first_frame(Stack* stack, unsigned index, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(shifted_top(stack, index)) - 20;
    for (int i = 0; i < 20; ++i) sp[i] = nullptr;
    sp[11] = reinterpret_cast<void*>(entry);    // x30, the link register
    return sp;
}
#else
#error "labkernels emulator: fibers are written for x86-64 and aarch64"
#endif

}  // namespace lk
