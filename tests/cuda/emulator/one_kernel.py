"""Sources of many kernels, of which one is compiled at a time: g++ takes longer for all of them than to run one."""

from labkernels.cuda import Kernel


def one_kernel(source: str, name: str) -> Kernel:
    """The kernel `name` of a source whose paragraphs are definitions for all, then one kernel each."""
    header, *kernels = source.split("\n\n")
    text = next(text for text in kernels if f"void {name.split('<')[0]}(" in text)
    return Kernel(f"{header}\n\n{text}", name)
