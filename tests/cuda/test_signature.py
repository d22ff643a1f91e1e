"""Signatures come from the compiler's mangled names, parameter names from a look at the source."""

import pytest

from labkernels.cuda.signature import Parameter, demangle, parse_signature
from labkernels.cuda.source import Source


def test_a_function_type_is_read_into_parameters():
    x, y, n, h = parse_signature("void (float const*, unsigned char*, long long, __half)", ["x", "y", "n", "h"])
    assert x == Parameter("x", "const float*", is_pointer=True, is_const=True, element="float")
    assert y == Parameter("y", "unsigned char*", is_pointer=True, is_const=False, element="unsigned char")
    assert n == Parameter("n", "long long", is_pointer=False, is_const=False, element="long long")
    assert h.element == "__half" and not h.is_pointer
    assert str(x) == "const float* x"


@pytest.mark.parametrize("text", ["void ()", "void (void)"])
def test_a_kernel_without_parameters(text):
    assert parse_signature(text) == ()


def test_commas_inside_templates_and_functions_do_not_split_parameters():
    types = [p.type for p in parse_signature("void (Pair<int, Map<char, 2> >, float (*)(int, int), int)")]
    assert types == ["Pair<int, Map<char, 2> >", "float (*)(int, int)", "int"]


def test_pointers_to_pointers_keep_their_depth():
    pointers, constant = parse_signature("void (float**, float const* const*)")
    assert pointers.element == "float*" and not pointers.is_const
    assert constant.element == "float const*" and constant.is_const


def test_names_are_left_out_where_their_count_differs():
    assert [p.name for p in parse_signature("void (int, int)", ["only"])] == [None, None]


def test_the_dummy_that_nvrtc_compiles_tells_sizes_too():
    name = "void lk_signature<void (float const*, P, char), lk_sizes<8u, 24u, 1u> >(void (*)(float const*, P, char))"
    assert [(p.type, p.size) for p in parse_signature(name)] == [("const float*", 8), ("P", 24), ("char", 1)]
    assert parse_signature("void lk_signature<void (), lk_sizes<> >(void (*)())") == ()


def test_sizes_can_be_given():
    assert [p.size for p in parse_signature("void (P, int)", None, (24, 4))] == [24, 4]


def test_what_is_no_function_type_is_refused():
    with pytest.raises(ValueError, match="not a function type: 'float const'"):
        parse_signature("float const")


@pytest.mark.parametrize(
    "mangled, readable",
    [
        ("FvPKfPfiE", "void (float const*, float*, int)"),
        (b"_ZN2ns1fIfLi4EEEvPKT_", "void ns::f<float, 4>(float const*)"),
        ("_Z12lk_signatureIFvPKfPfi6__halfEEvPT_", "void lk_signature<void (float const*, float*, int, __half)>"
         "(void (*)(float const*, float*, int, __half))"),
    ],
)  # fmt: skip
def test_demangled_names_and_types(mangled, readable):
    assert demangle(mangled) == readable


def test_demangle_refuses_what_is_not_mangled():
    with pytest.raises(ValueError, match="not a mangled"):
        demangle("_Znonsense")


def names(text):
    return Source(text).kernels()


def test_parameter_names_are_found_in_the_source():
    text = """
    template <class T, int N = 3>
    __global__ void __launch_bounds__(WARPS * (32), 2) f(const T* __restrict__ x, float* y, int n = g(1, 2),
                                                         Pair<int, 3> p, unsigned int, float w[]) {}
    extern "C" __global__ __launch_bounds__(threads(3), blocks(2)) void empty() { h(3); }
    static __global__ void other(unsigned
        n) {}
    __global__ void __launch_bounds__(WARPS < 4 ? 4 : WARPS) less_than(int i) {}
    """
    assert names(text) == {"f": ("x", "y", "n", "p", None, "w"), "empty": (), "other": ("n",), "less_than": ("i",)}


def test_comments_strings_and_device_functions_are_no_kernels():
    text = """
    // __global__ void a(int x) {}
    /* __global__ void b(int x) {} */
    __device__ const char* s = "__global__ void c(int x) {}";
    __device__ int d(int x) { return x; }
    __global__ void e(int /* the count */ n, // of rows
                      float y) {}
    """
    assert names(text) == {"e": ("n", "y")}


def test_text_that_breaks_off_is_no_kernel():
    assert names("__global__ void f(int x") == {}
    assert names("__global__;") == {}
