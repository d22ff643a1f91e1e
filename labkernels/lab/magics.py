"""The notebook's magics: `%load_ext labkernels`.

    %%cuda [--name NAME ...] [-D KEY=VALUE ...]     compile the cell's CUDA C++; its kernels become variables
    %%check OP [name=value ...]                     run the cell and check the function it defines last
    %sanitize k(grid, block, (x, y, n))             one launch under the sanitizer
    %profile k(grid, block, (x, y, n))              one launch under the profiler: the source with its counters
    %bench OP NAME ... [size=1,2,3 ...]             a benchmark as a line
    %ptx NAME, %sass NAME [--arch sm_80]            what the compiler made of a kernel, the source line beside
"""
from __future__ import annotations

import ast
import shlex

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

from labkernels.errors import CompileError, LabKernelsError
from labkernels.lab.listing_magics import ListingMagics
from labkernels.lab.tracebacks import render_traceback, running_cell


@magics_class
class LabMagics(Magics):
    """`%%cuda`, `%%check`, `%sanitize`, `%profile` and `%bench`."""

    @magic_arguments()
    @argument("--name", "-n", action="append", default=[], help="a kernel to put into the namespace, as softmax or 'scale<float, 4>'; "
              "default: every __global__ function of the cell")
    @argument("--define", "-D", action="append", default=[], metavar="KEY=VALUE", help="a preprocessor definition; {x} takes a Python value")
    @cell_magic
    def cuda(self, line: str, cell: str) -> None:
        """Compile the cell's CUDA C++ and put its kernels into the namespace, each a `labkernels.Kernel`.

        Compiler messages carry the cell's own line numbers, the magic's line being the first. If the cell does not compile, its
        kernels' names are bound to something that says so when called, so that no earlier version runs in their place.
        """
        from labkernels.cuda import Kernel, Source
        from labkernels.cuda.compile import base_name
        from labkernels.lab.compile_report import compile_report

        arguments = parse_argstring(self.cuda, line)
        defines = dict(_define(text) for text in arguments.define)
        filename = f"In[{running_cell(self.shell)}]"
        source = Source.from_text(cell, defines=defines, filename=filename, first_line=2)
        names = [name.strip("'\"") for name in arguments.name] or list(source.kernels())
        variables = [base_name(name) for name in names]
        if not names:
            raise UsageError("%%cuda: the cell has no __global__ function")
        if len(set(variables)) < len(variables):
            raise UsageError(f"%%cuda: two kernels would have one name: {', '.join(names)}")
        kernels = {variable: Kernel(source, name) for variable, name in zip(variables, names)}
        try:
            for kernel in kernels.values():
                _compile(kernel)
        except CompileError as error:
            self.shell.push({variable: NotCompiled(variable, filename, error) for variable in variables})
            error._render_traceback_ = str(error).splitlines
            raise
        self.shell.push(kernels)
        report = compile_report(kernels)
        if report is not None:
            display(report)

    @cell_magic
    def check(self, line: str, cell: str) -> None:
        """Run the cell and check the function that it defines last as an implementation of the operation: `%%check softmax`.

        What `labkernels.check` takes besides is taken too: `%%check attention head_dim=64 dtypes=["float32"] time_limit_s=60`.
        """
        from labkernels.lab.check import check

        op, *words = shlex.split(line, posix=False) or [""]
        if not op or "=" in op or not all("=" in word for word in words) or not cell.strip():
            raise UsageError("%%check: write %%check, an operation and perhaps name=value, and below it the function to check")
        name = self._run(cell)
        options = {key: self._evaluate(ast.parse(text, mode="eval").body) for key, _, text in (word.partition("=") for word in words)}
        check(op, self.shell.user_ns[name], **options)

    @line_magic
    def sanitize(self, line: str):
        """Run one launch under the sanitizer and show its report: `%sanitize k(grid, block, (x, y, n))`."""
        from labkernels.cuda import sanitize

        return self._launch(sanitize, line)

    @line_magic
    def profile(self, line: str):
        """Run one launch under the profiler and show the source with its counters: `%profile k(grid, block, (x, y, n))`.

        What `labkernels.profile` takes besides is taken too: `%profile k(grid, block, (x, y, n), l2_bytes=2**20)`.
        """
        from labkernels.cuda import profile

        return self._launch(profile, line)

    @line_magic
    def bench(self, line: str):
        """Benchmark variants, peers or your own functions: `%bench attention v2_online my_attention seq_len=512,4096`."""
        op, *words = shlex.split(line) or [""]
        if not op:
            raise UsageError("%bench: write an operation and what to measure, as in: %bench softmax v2_online my_softmax cols=256,8192")
        from labkernels.lab.bench import bench

        sweep = {key: self._values(text) for key, _, text in (word.partition("=") for word in words if "=" in word)}
        return bench(op, [self._implementation(word) for word in words if "=" not in word] or None, **sweep)

    def _run(self, cell: str) -> str:
        """Run a cell's body in the namespace, its lines counted as JupyterLab shows them; the name of the function defined last."""
        code = "\n" + self.shell.transform_cell(cell)
        filename = self.shell.compile.cache(code, running_cell(self.shell))
        tree = ast.parse(code, filename)
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        if not functions:
            raise UsageError("%%check: the cell defines no function")
        exec(compile(tree, filename, "exec"), self.shell.user_ns)
        return functions[-1]

    def _launch(self, tool, line: str):
        """What `tool` makes of the launch that `line` writes as a call of a kernel."""
        try:
            call = ast.parse(line.strip(), mode="eval").body
        except SyntaxError:
            call = None
        if not isinstance(call, ast.Call):
            name = f"%{tool.__name__}"
            raise UsageError(f"{name}: write a launch, as in: {name} k(grid, block, (x, y, n))")
        kernel, *positional = (self._evaluate(node) for node in [call.func, *call.args])
        return tool(kernel, *positional, **{keyword.arg: self._evaluate(keyword.value) for keyword in call.keywords})

    def _evaluate(self, node: ast.expr):
        return eval(compile(ast.Expression(node), "<magic>", "eval"), self.shell.user_ns)

    def _values(self, text: str) -> list:
        values = self._evaluate(ast.parse(f"[{text}]", mode="eval").body)
        return list(values[0]) if len(values) == 1 and isinstance(values[0], (list, tuple, range)) else values

    def _implementation(self, word: str):
        value = self.shell.user_ns.get(word)
        return value if callable(value) else word


class NotCompiled:
    """Stands for a kernel whose cell did not compile, and says so when it is used."""

    def __init__(self, name: str, filename: str, error: CompileError):
        self._name, self._filename, self._error = name, filename, error

    def __call__(self, *args, **kwargs):
        first = (str(self._error).split("\n\n", 1)[1:] or [f"see {self._filename}"])[0].splitlines()[0]   # the rest stands below that cell
        raise CompileError(f"{self._name} was not compiled: {first}", self._error.diagnostics, self._error.log)

    def __getattr__(self, attribute: str):
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        self()

    def __repr__(self) -> str:
        return f"<{self._name}: not compiled, see {self._filename}>"


def load_ipython_extension(shell) -> None:
    """Called by `%load_ext labkernels`: registers the magics, and makes the package's exceptions short in this notebook."""
    shell.register_magics(LabMagics, ListingMagics)
    LabKernelsError._render_traceback_ = lambda error: render_traceback(error, shell)


def _compile(kernel) -> None:
    """Compile for where this machine runs kernels; asking for the signature does."""
    _ = kernel.signature


def _define(text: str) -> tuple[str, str]:
    key, _, value = text.strip("'\"").partition("=")
    if not key.isidentifier():
        raise UsageError(f"%%cuda: -D {text}: write KEY=VALUE")
    return key, value or "1"
