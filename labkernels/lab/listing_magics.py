"""The magics that show what a kernel became: `%ptx scale`, `%sass scale --arch sm_80`."""

from __future__ import annotations

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring


@magics_class
class ListingMagics(Magics):
    """`%ptx` and `%sass`, and the completion of the kernels' names behind them."""

    def __init__(self, shell):
        super().__init__(shell)
        for magic in ("%ptx", "%sass"):
            shell.set_hook("complete_command", _kernels, str_key=magic)

    @magic_arguments()
    @argument("kernel", help="a kernel in the namespace, as %%%%cuda puts it there")
    @argument("--arch", help="the GPU's architecture, such as sm_80; default: this machine's GPU, or sm_90")
    @line_magic
    def ptx(self, line: str):
        """Show a kernel's PTX, the virtual instructions that NVRTC writes, with the source line beside: `%ptx scale`."""
        from labkernels.cuda.ptx import ptx_listing

        return self._listing(self.ptx, ptx_listing, line)

    @magic_arguments()
    @argument("kernel", help="a kernel in the namespace, as %%%%cuda puts it there")
    @argument("--arch", help="the GPU's architecture, such as sm_80; default: this machine's GPU, or sm_90")
    @line_magic
    def sass(self, line: str):
        """Show a kernel's SASS, the instructions that the GPU executes, with the source line beside: `%sass scale --arch sm_80`."""
        from labkernels.cuda.sass import sass_listing

        return self._listing(self.sass, sass_listing, line)

    def _listing(self, magic, make, line: str):
        from labkernels.cuda import Kernel

        arguments = parse_argstring(magic, line)
        kernel = self.shell.user_ns.get(arguments.kernel)
        getattr(kernel, "compiled", None)  # what stands for a kernel that did not compile says so here
        if not isinstance(kernel, Kernel):
            what = f"{arguments.kernel} is {type(kernel).__name__}" if arguments.kernel in self.shell.user_ns else f"there is no {arguments.kernel}"
            raise UsageError(f"%{magic.__name__}: {what}; write the name of a kernel, as in: %{magic.__name__} scale --arch sm_80")
        return make(kernel, arguments.arch)


def _kernels(shell, event) -> list[str]:
    from labkernels.cuda import Kernel

    return [name for name, value in shell.user_ns.items() if isinstance(value, Kernel)]
