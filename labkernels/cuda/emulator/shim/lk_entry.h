// Included after the user's source, with LK_KERNEL naming the kernel: what Python calls (lk_call.h, in the prelude, has its parts).
#pragma once

// At namespace scope, where the user's names mean what they say: a kernel may be called `reduce`, as a function of lk is.
using lk_kernel_entry = lk::Entry<decltype(LK_KERNEL)>;

extern "C" __attribute__((no_sanitize("thread"))) void lk_call_kernel(void** arguments) {
    lk_kernel_entry::call(&LK_KERNEL, arguments, std::make_index_sequence<lk_kernel_entry::count>());
}
extern "C" const unsigned* lk_cluster() {      // what __cluster_dims__ say; null without it
#ifdef LK_CLUSTER_DECLARED
    return lk_cluster_shape;
#else
    return nullptr;
#endif
}
extern "C" const char* lk_signature() { return typeid(decltype(LK_KERNEL)).name(); }
extern "C" unsigned lk_parameter_count() { return lk_kernel_entry::count; }
extern "C" const unsigned* lk_parameter_sizes() { return lk_kernel_entry::sizes; }

// One variable in the kernel library's thread-local storage: its address tells Python's symbol table where a worker's
// shared arrays lie.
static thread_local char lk_tls_anchor_variable;
extern "C" char* lk_tls_anchor() { return &lk_tls_anchor_variable; }
