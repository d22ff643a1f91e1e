// Signals: a crash inside emulated code ends the launch instead of the process; a thread that never gives way is made to.
#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "machine.h"
#include "sanitizer.h"

namespace lk {
namespace {

constexpr int kCrashSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction previous[64];
int poke_signal() { return SIGRTMIN + 7; }

std::mutex install_mutex;
unsigned installed = 0;

std::uintptr_t program_counter(const ucontext_t* context) {
#if defined(__x86_64__)
    return static_cast<std::uintptr_t>(context->uc_mcontext.gregs[REG_RIP]);
#else
    return static_cast<std::uintptr_t>(context->uc_mcontext.pc);
#endif
}

// Places are kept as return addresses, which point behind the instruction meant.
void* as_return_address(std::uintptr_t pc) { return reinterpret_cast<void*>(pc + 1); }

// When the handler returns, the OS thread goes on in the worker's main context: the block is abandoned.
void return_to_main(ucontext_t* context, Worker& worker) {
    worker.cluster->aborted = true;
    worker.busy = false;
#if defined(__x86_64__)
    context->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(&lk_resume);
    context->uc_mcontext.gregs[REG_RSI] = reinterpret_cast<greg_t>(worker.cluster->main_stack_pointer);
#else
    context->uc_mcontext.pc = reinterpret_cast<std::uintptr_t>(&lk_resume);
    context->uc_mcontext.regs[1] = reinterpret_cast<std::uintptr_t>(worker.cluster->main_stack_pointer);
#endif
}

std::string describe_crash(int signal, siginfo_t* info, const Worker& worker) {
    if (signal == SIGFPE) return "integer division by zero";
    if (signal == SIGILL) return "the thread ran into __builtin_unreachable() or __trap()";
    char* address = static_cast<char*>(info->si_addr);
    const Stack* stack = worker.current ? worker.current->stack : nullptr;
    if (stack && address >= stack->guard && address < stack->bottom)
        return "stack overflow (128 KiB of local memory a thread): endless recursion, or a large local array";
    char text[96];
    if (reinterpret_cast<std::uintptr_t>(address) < 65536) {
        std::snprintf(text, sizeof text, "access through a null pointer (address %p)", static_cast<void*>(address));
    } else {
        std::snprintf(text, sizeof text, "access to memory that belongs to nothing (address %p)", static_cast<void*>(address));
    }
    return text;
}

void on_crash(int signal, siginfo_t* info, void* raw) {
    auto* context = static_cast<ucontext_t*>(raw);
    auto* worker = static_cast<Worker*>(lk_block);
    if (!worker || !worker->current) {              // not ours: as if we had never been here
        struct sigaction& old = previous[signal];
        if (old.sa_flags & SA_SIGINFO) return old.sa_sigaction(signal, info, raw);
        sigaction(signal, &old, nullptr);
        return;
    }
    const std::uintptr_t pc = program_counter(context);
    void* place = worker->launch->kernel_text.holds(pc) ? as_return_address(pc) : worker->current->last_pc;
    const std::string text = describe_crash(signal, info, *worker);
    if (worker->sanitizer) worker->sanitizer->crash(*worker, *worker->current, text, info->si_addr, place);
    else worker->launch->fail(*worker, kCrashed, text, place);
    return_to_main(context, *worker);
}

void on_poke(int, siginfo_t*, void* raw) {
    auto* context = static_cast<ucontext_t*>(raw);
    auto* worker = static_cast<Worker*>(lk_block);
    if (!worker || !worker->current || worker->busy) return;
    Launch& launch = *worker->launch;
    const std::uintptr_t pc = program_counter(context);
    const bool in_kernel = launch.kernel_text.holds(pc);
    if (launch.stop.load(std::memory_order_relaxed)) {
        if (!in_kernel && !launch.runtime_text.holds(pc)) return;      // in a lock of libc, perhaps: the next poke will do
        void* place = in_kernel ? as_return_address(pc) : worker->current->last_pc;
        if (launch.stop_reason == kTimeout) {
            if (worker->sanitizer) worker->sanitizer->timeout(*worker, *worker->current, place);
            else launch.fail(*worker, kTimeout, "the time limit has passed", place);
        }
        return_to_main(context, *worker);
    } else if (in_kernel && !worker->sanitizer && !worker->profiler) {     // who is watched is scheduled the same every time
        yield();                                    // the interrupted thread goes on when its turn comes
    }
}

}  // namespace

TextRange text_of(const void* address) {
    struct Search { std::uintptr_t address; TextRange range; } search{reinterpret_cast<std::uintptr_t>(address), {}};
    dl_iterate_phdr([](dl_phdr_info* info, std::size_t, void* raw) {
        auto* wanted = static_cast<Search*>(raw);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& segment = info->dlpi_phdr[i];
            const std::uintptr_t low = info->dlpi_addr + segment.p_vaddr;
            if (segment.p_type != PT_LOAD || wanted->address < low || wanted->address >= low + segment.p_memsz) continue;
            wanted->range = TextRange{low, low + segment.p_memsz};
            return 1;
        }
        return 0;
    }, &search);
    return search.range;
}

void install_signal_handlers() {
    std::lock_guard<std::mutex> lock(install_mutex);
    if (installed++) return;
    struct sigaction action;
    std::memset(&action, 0, sizeof action);
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    action.sa_sigaction = on_crash;
    for (int signal : kCrashSignals) sigaction(signal, &action, &previous[signal]);
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;      // on the fiber's own stack: a switch may happen inside
    action.sa_sigaction = on_poke;
    sigaction(poke_signal(), &action, nullptr);
}

void remove_signal_handlers() {
    std::lock_guard<std::mutex> lock(install_mutex);
    if (--installed) return;
    for (int signal : kCrashSignals) sigaction(signal, &previous[signal], nullptr);
}

SignalStack::SignalStack() : memory_(64 * 1024) {
    stack_t stack{};
    stack.ss_sp = memory_.data();
    stack.ss_size = memory_.size();
    sigaltstack(&stack, nullptr);
}

SignalStack::~SignalStack() {
    stack_t stack{};
    stack.ss_flags = SS_DISABLE;
    sigaltstack(&stack, nullptr);
}

void poke(Worker& worker) { pthread_kill(worker.os_thread, poke_signal()); }

}  // namespace lk
