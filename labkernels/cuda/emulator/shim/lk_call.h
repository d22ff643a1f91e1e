// How a kernel is called with arguments that Python packed, and what Python asks about its parameters.
#pragma once
#include <type_traits>
#include <typeinfo>
#include <utility>

namespace lk {

template <class Function> struct Entry;
template <class... Parameters> struct Entry<void(Parameters...)> {
    static_assert((!std::is_reference<Parameters>::value && ...), "a kernel cannot take a reference");
    static constexpr unsigned count = sizeof...(Parameters);
    static constexpr unsigned sizes[count + 1] = {sizeof(Parameters)..., 0};

    template <std::size_t... I>
    __attribute__((no_sanitize("thread"))) static void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_cv_t<Parameters>*>(arguments[I])...);
    }
};

}  // namespace lk
