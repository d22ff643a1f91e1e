"""A picture of what stands between a call in Python and a kernel, once the kernel is a torch operator."""

from __future__ import annotations

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from labkernels.lab import style

_LAYERS = (  # what it is, what it does with a call, what it must be told
    ("torch.compile", "puts the call in a graph, without any data", "fake kernel: the result's shape, dtype, strides"),
    ("dispatcher", "checks the arguments, finds who is next", "schema: names and types; what is changed in place"),
    ("autograd", "keeps what the way back needs", "gradient: how to go back, and what to keep"),
    ("your kernel", "computes", "kernel: one for CUDA, here also one for the CPU"),
)


@style.look()
def operator_layers() -> style.Picture:
    """The layers of a call to torch.ops.mine.op, from Python down to the kernel, and what each must be told."""
    figure, axes = style.figure(height=3.5)
    for level, (name, does, told) in enumerate(_LAYERS):
        y, last = len(_LAYERS) - 1 - level, level == len(_LAYERS) - 1
        tone = style.GREEN if last else style.BLUE
        axes.add_patch(FancyBboxPatch((0.1, y + 0.12), 4.5, 0.7, boxstyle="round,pad=0.05", facecolor=tone, alpha=0.18, edgecolor=tone))
        axes.text(0.25, y + 0.6, name, fontweight="bold", va="center")
        axes.text(0.25, y + 0.3, does, fontsize=8.5, va="center")
        axes.text(5.4, y + 0.47, told, fontsize=8.5, va="center")
        axes.add_patch(FancyArrowPatch((5.3, y + 0.47), (4.75, y + 0.47), arrowstyle="-|>", mutation_scale=11, color=style.GREY, shrinkA=0, shrinkB=0))
        if not last:
            axes.add_patch(FancyArrowPatch((2.35, y + 0.05), (2.35, y - 0.1), arrowstyle="-|>", mutation_scale=12, color=style.INK, shrinkA=0, shrinkB=0))
    axes.text(0.1, len(_LAYERS) + 0.05, "torch.ops.mine.op(x)", family="monospace", va="bottom")
    axes.text(5.4, len(_LAYERS) + 0.05, "what you tell it", fontweight="bold", va="bottom", fontsize=9)
    axes.set_xlim(0, 9.4)
    axes.set_ylim(-0.05, len(_LAYERS) + 0.4)
    axes.axis("off")
    layers = "; ".join(f"{name} {does} (it is told the {told.partition(':')[0]})" for name, does, told in _LAYERS)
    return style.picture(figure, f"Four layers that a call of a torch operator passes, from top to bottom: {layers}.")
