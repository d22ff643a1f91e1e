"""NVRTC without a GPU: symbols, signatures, and errors at the reader's own line."""

import pytest

from labkernels.cuda import cache, compile, diagnostics
from labkernels.cuda.compile import compile_kernel, full_arch
from labkernels.cuda.diagnostics import Diagnostic, parse_gcc, parse_nvrtc
from labkernels.cuda.resources import section_sizes
from labkernels.cuda.source import Source
from labkernels.errors import ArgumentError, CompileError

SOURCE = Source.from_text("""
#include <cuda_fp16.h>
struct Options { int a; double b; char c; };
namespace ns {
template <typename T, int N>
__global__ void copy(const T* __restrict__ x, T* y, int n, __half h, Options options, const float4 v) { y[threadIdx.x] = x[N]; }
}
extern "C" __global__ void plain(const float4* x, unsigned char* y, long long n, bool b) { y[0] = x[n].x; }
__global__ void empty() {}
""")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKERNELS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_a_template_instantiation_is_compiled_with_its_signature():
    cubin = compile_kernel(SOURCE, "ns::copy<float, 4>")
    assert [(p.name, p.type, p.size) for p in cubin.signature] == [
        ("x", "const float*", 8), ("y", "float*", 8), ("n", "int", 4), ("h", "__half", 2), ("options", "Options", 24), ("v", "float4", 16),
    ]  # fmt: skip
    assert cubin.symbol.startswith("_ZN2ns4copyIfLi4EE")
    assert f".text.{cubin.symbol}" in section_sizes(cubin.path.read_bytes())


def test_another_instantiation_has_another_signature():
    assert compile_kernel(SOURCE, "ns::copy<__half, 2>").signature[0].type == "const __half*"


def test_extern_c_kernels_keep_their_name():
    cubin = compile_kernel(SOURCE, "plain")
    assert cubin.symbol == "plain"
    assert [p.element for p in cubin.signature] == ["float4", "unsigned char", "long long", "bool"]


def test_a_kernel_without_parameters():
    assert compile_kernel(SOURCE, "empty").signature == ()


def test_the_second_compilation_comes_from_the_cache(monkeypatch):
    first = compile_kernel(SOURCE, "plain", "sm_80")
    monkeypatch.setattr(compile, "_compile_into", None)
    assert compile_kernel(SOURCE, "plain", "sm_80") == first


def test_a_truncated_cubin_is_compiled_anew():
    cubin = compile_kernel(SOURCE, "plain", "sm_86")
    code = cubin.path.read_bytes()
    cubin.path.write_bytes(code[: len(code) // 2])
    assert len(compile_kernel(SOURCE, "plain", "sm_86").path.read_bytes()) == len(code)


def test_headers_and_defines_reach_the_compiler(tmp_path):
    (tmp_path / "size.cuh").write_text("constexpr int size = FACTOR * 100;")
    (tmp_path / "k.cu").write_text('#include "size.cuh"\ntemplate <int n> struct Row {};\n__global__ void k(Row<size>* x) {}')

    def element(factor):
        return compile_kernel(Source.from_file(tmp_path / "k.cu", defines={"FACTOR": factor}), "k").signature[0].element

    assert element(3) == "Row<300>"
    assert element(4) == "Row<400>"
    (tmp_path / "size.cuh").write_text("constexpr int size = 7;")
    assert element(4) == "Row<7>"


def test_the_architecture_reaches_the_compiler():
    text = "__global__ void k(int* x) {\n#if __CUDA_ARCH__ == 800\n *x = 1;\n#else\n wrong_architecture();\n#endif\n}"
    compile_kernel(Source.from_text(text), "k", "sm_80")
    with pytest.raises(CompileError, match="wrong_architecture"):
        compile_kernel(Source.from_text(text), "k", "sm_90")


@pytest.mark.parametrize("header", ["cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h", "cooperative_groups.h", "cuda/std/limits"])
def test_cudas_headers_are_found(header):
    assert compile_kernel(Source.from_text(f"#include <{header}>\n__global__ void f(int n) {{}}"), "f").signature[0].name == "n"


def test_hopper_instructions_compile_because_the_architecture_has_its_suffix():
    source = Source.from_text('__global__ void f() { asm volatile("setmaxnreg.inc.sync.aligned.u32 64;"); }')
    assert compile_kernel(source, "f", "sm_90").arch == "sm_90a"
    assert full_arch("sm_90a") == "sm_90a" and full_arch("sm_86") == "sm_86"


@pytest.mark.parametrize("arch", ["sm_70", "hopper", "sm_", 90])
def test_an_unknown_architecture_is_named(arch):
    with pytest.raises(ArgumentError, match="sm_75, .*sm_90|written like 'sm_90'"):
        compile_kernel(SOURCE, "plain", arch)


# ---- errors -----------------------------------------------------------------------------------------------------------

CELL = """\
template <class T> __device__ T half_of(T x) { return x->y; }
__global__ void f(float* x) {
\tx[0] = foo + 1;\tbar();
    x[1] = half_of(x[2]);
    float y = 3
}
"""


def error_of(text, name="f", **place) -> CompileError:
    with pytest.raises(CompileError) as caught:
        compile_kernel(Source.from_text(text, **place), name)
    return caught.value


def test_errors_name_the_cells_own_lines_with_a_caret():
    error = error_of(CELL, filename="In[7]", first_line=3)
    where = {d.text.splitlines()[0]: (d.file, d.line, d.column) for d in error.diagnostics if d.severity == "error"}
    assert where['identifier "foo" is undefined'] == ("In[7]", 5, 9)
    assert where['identifier "bar" is undefined'] == ("In[7]", 5, 18)
    assert where['expected a ";"'] == ("In[7]", 8, 1)
    assert "does not compile: 4 errors" in str(error)
    assert 'In[7], line 5: identifier "foo" is undefined\n    \tx[0] = foo + 1;\tbar();\n    \t       ^\n' in str(error)
    assert "detected during instantiation" in str(error) and "lk_signature" not in str(error)


def test_an_error_in_a_header_shows_the_headers_line(tmp_path):
    (tmp_path / "bad.cuh").write_text("// fine\n__device__ int g() { return nowhere; }\n")
    (tmp_path / "k.cu").write_text('#include "bad.cuh"\n__global__ void f() {}\n')
    with pytest.raises(CompileError) as caught:
        compile_kernel(Source.from_file(tmp_path / "k.cu"), "f")
    assert caught.value.diagnostics[0].file == str(tmp_path / "bad.cuh") and caught.value.diagnostics[0].line == 2
    assert "return nowhere; }\n" in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ('#include "nope.h"\n__global__ void f() {}', 'line 1: cannot open source file "nope.h"'),
        ("__global__ void f() {\n", "line 1: this { is never closed: a } is missing"),
        ("int g() { return 1; }\n__global__ void f() {}", "a function that runs on the GPU is marked: __device__"),
        ("__global__ void f(int* x) { __shared__ int s[99999]; s[*x] = 1; *x = s[1]; }", r"'f' uses too much shared data \(399996 bytes"),
        ('__global__ void f() { asm volatile("what.ever;"); }', "Not a name of any known instruction: 'what'"),
        ("__global__ void g() {}\n__global__ void h() {}", "kernel.cu has no __global__ function f; it has: g, h"),
        ("__device__ void f() {}", "kernel.cu has no __global__ function f; it has: none"),
        ("template <class T> __global__ void f(T* x) {}", "f is a template; name one instantiation of it, such as f<float>"),
    ],
)
def test_what_is_wrong_is_said_plainly(text, message):
    with pytest.raises(CompileError, match=message) as caught:
        compile_kernel(Source.from_text(text), "f")
    assert "__nv_name_map" not in str(caught.value) and caught.value.diagnostics and caught.value.log


def test_a_wrong_instantiation_is_named():
    assert "f<float> names no kernel" in str(error_of("template <class T, int n> __global__ void f(T*) {}", "f<float>"))


def test_warnings_do_not_hide_in_errors_nor_errors_behind_five():
    text = "__global__ void f() {\n  int unused;\n" + "".join(f"  a{i}();\n" for i in range(9)) + "}\n"
    error = error_of(text)
    assert "9 errors" in str(error) and "a4" in str(error) and "a5" not in str(error) and "... and 4 more" in str(error)
    assert "unused" not in str(error)
    assert any(d.severity == "warning" and "unused" in d.text for d in error.diagnostics)


def test_a_failed_compilation_leaves_nothing_in_the_cache():
    before = {p.name for p in cache.root().iterdir() if p.is_dir()}
    error_of("__global__ void f() { nothing_cached(); }")
    assert {p.name for p in cache.root().iterdir() if p.is_dir()} == before


# ---- logs of both compilers ---------------------------------------------------------------------------------------------


def test_gccs_log_is_read():
    log = """\
In[7]: In function 'void f(float*)':
In[7]:5:9: error: 'foo' was not declared in this scope
In[7]: In instantiation of 'T g(T) [with T = float]':
In[7]:6:5:   required from here
In[7]:3:37: error: base operand of '->' is not a pointer
In[7]:8:10: fatal error: nope.h: No such file or directory
compilation terminated.
g++: fatal error: Killed signal terminated program cc1plus
"""
    assert parse_gcc(log) == [
        Diagnostic("In[7]", 5, 9, "error", "'foo' was not declared in this scope"),
        Diagnostic("In[7]", 3, 37, "error", "base operand of '->' is not a pointer\n  required from In[7], line 6"),
        Diagnostic("In[7]", 8, 10, "error", "nope.h: No such file or directory"),
        Diagnostic(None, None, None, "error", "Killed signal terminated program cc1plus"),
    ]


def test_the_linkers_log_is_read():
    log = "/usr/bin/ld: /tmp/k.o: in function `f':\n<stdin>:(.text+0x5): undefined reference to `g()'\ncollect2: error: ld returned 1 exit status\n"
    assert parse_gcc(log) == [Diagnostic(None, None, None, "error", "undefined reference to `g()'")]


def test_nvrtcs_log_is_read_with_columns_notes_and_numbers():
    log = """\
k.cu(4): warning #68-D: integer conversion resulted in a change of sign
   unsigned int u = -1;
                    ^

Remark: The warnings can be suppressed with "-diag-suppress <warning-number>"

k.cu(5): note #3453-D: the final comparison was 4 == 8
\0ptxas warning : Value of threads per SM for entry _Z1fv is out of range
\0"""
    assert parse_nvrtc(log) == [
        Diagnostic("k.cu", 4, 19, "warning", "integer conversion resulted in a change of sign"),
        Diagnostic("k.cu", 5, None, "note", "the final comparison was 4 == 8"),
        Diagnostic(None, None, None, "warning", "Value of threads per SM for entry _Z1fv is out of range"),
    ]


def test_a_log_that_nobody_can_read_is_shown_whole():
    error = diagnostics.compile_error("f", SOURCE, parse_gcc("the disk is full"), "the disk is full")
    assert "f does not compile" in str(error) and "the disk is full" in str(error)


def test_infinity_and_nan_are_known_as_to_nvcc_and_the_emulator():
    text = """
    #include <math_constants.h>
    #include <cuda/std/cmath>
    static_assert(sizeof(INFINITY) == 4 && sizeof(NAN) == 4);
    extern "C" __global__ void masks(float* y, bool seen) { y[0] = seen ? cuda::std::fabs(y[0]) : -INFINITY; y[1] = NAN; y[2] = -CUDART_INF_F; }
    """
    assert compile_kernel(Source.from_text(text), "masks").symbol == "masks"


@pytest.mark.parametrize(
    "code, message",
    [
        ("{\n    if (y) {\n        y[0] = '{';\n    }\n", "this { is never closed"),
        ("{\n    y[0] = 1; }  // { \"{\"\n}\n", "this } closes nothing"),
    ],
)
def test_a_brace_too_few_or_too_many_is_named_before_what_the_compiler_makes_of_it(code, message):
    source = Source.from_text(f"__global__ void brace(float* y) {code}", filename="In[5]")
    log = "/usr/include/c++/12/bits/invoke.h:42:1: error: expected '=' before '__attribute__'"
    error = diagnostics.compile_error("brace", source, parse_gcc(log), log)
    assert message in str(error) and "1 error" in str(error) and "invoke.h" not in str(error)


def test_the_functions_that_a_call_could_not_have_meant_are_not_listed():
    source = Source.from_text("__global__ void f(float* y) {\n    int i = blockIdx * blockDim;\n}", filename="In[5]")
    log = "In[5]:2:22: error: no match for 'operator*'\ncuda_fp16.hpp:203:5: note: candidate: '__half operator*(const __half&, const __half&)'"
    error = diagnostics.compile_error("f", source, parse_gcc(log), log)
    assert "no match" in str(error) and "candidate" not in str(error)
