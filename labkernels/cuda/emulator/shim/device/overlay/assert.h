// <assert.h> for device code: a failed assertion ends the launch and names the expression and its line. As the original,
// it may be included again with another NDEBUG.
#ifndef LK_ASSERT
#define LK_ASSERT
namespace lk { [[noreturn]] void assertion_failed(const char* expression, const char* file, int line); }
#endif
#undef assert
#ifdef NDEBUG
#define assert(...) ((void)0)
#else
#define assert(...) ((__VA_ARGS__) ? (void)0 : lk::assertion_failed(#__VA_ARGS__, __FILE__, __LINE__))
#endif
