"""Pictures of an inference engine: what a layer launches, who waits for whom, the bytes of a token, who is in which pass, and the measured ladder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.patches import Rectangle

from labkernels.lab import style

_STAGES = {  # of a layer: what PyTorch launches, in order
    "norm, q k v, RoPE,\ncache": ("norm", "q k v", *["turn"] * 14, "write k", "write v"),
    "attention": ("scores", "scale", "softmax", "values"),
    "projection,\n+ stream": ("project", "+"),
    "norm, gate,\nup, SwiGLU": ("norm", "gate, up", "silu", "×"),
    "down,\n+ stream": ("down", "+"),
}
_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY)
_STATES = {  # of a request in a pass: what it is called, colour, opacity
    "w": ("waits", style.LIGHT, 1.0),
    "p": ("reads its prompt", style.ORANGE, 0.9),
    "d": ("gets a token", style.BLUE, 0.8),
    "x": ("gave its pages back", style.RED, 0.9),
}
_PARTS = {"layers": style.BLUE, "head": style.SKY, "keys and values": style.ORANGE}


@style.look()
def layer_launches() -> style.Picture:
    """One layer for one token: a box a launch, PyTorch's above, the fused kernels below."""
    figure, axes = style.figure(height=2.0)
    x, count = 0.0, sum(map(len, _STAGES.values()))
    for (fused, parts), colour in zip(_STAGES.items(), _COLOURS):
        first, width = x, max(len(parts), 6.2)
        step = width / len(parts)
        for part in parts:
            axes.add_patch(Rectangle((x + 0.06, 1.15), step - 0.12, 0.75, facecolor=colour, alpha=0.35, edgecolor=colour))
            axes.text(x + step / 2, 1.52, part, ha="center", va="center", fontsize=7, rotation=90)
            x += step
        axes.add_patch(Rectangle((first + 0.06, 0.0), x - first - 0.12, 0.8, facecolor=colour, alpha=0.75, edgecolor=colour))
        axes.text((first + x) / 2, 0.4, fused, ha="center", va="center", fontsize=7.6)
        x += 0.35
    axes.text(-0.3, 1.52, f"v2: {count}", ha="right", va="center")
    axes.text(-0.3, 0.4, f"v3: {len(_STAGES)}", ha="right", va="center")
    axes.set_xlim(-3.2, x)
    axes.set_ylim(-0.1, 2.0)
    axes.axis("off")
    told = "; ".join(f"{fused} for {', '.join(dict.fromkeys(parts))}".replace("\n", " ") for fused, parts in _STAGES.items())
    return style.picture(figure, f"The {count} launches of a layer in v2, as a row of boxes, and below them the {len(_STAGES)} kernels of v3 that do the same: {told}.")


@style.look()
def token_timeline(kernels: int = 5, launch: float = 3.0, kernel: float = 1.0, gap: float = 0.25) -> style.Picture:
    """The CPU and the GPU through one token: launched one by one, as a graph, and with kernels that begin early. Times are in a kernel's."""
    if kernels < 2 or launch <= kernel:
        raise ValueError(f"token_timeline: kernels is {kernels}, launch {launch}; there must be 2 or more, and launching one must take longer than {kernel}")
    figure, axes = style.figure(height=2.9)
    ends = {}
    for row, name in enumerate(("v3: one by one", "v4: a graph", "v6: begun early")):
        y = 4.2 - 1.9 * row
        axes.text(-0.4, y + 0.65, name, ha="right", va="center", fontsize=9.5)
        for at in range(kernels):
            if row == 0:
                axes.add_patch(Rectangle((at * launch, y + 0.75), launch - 0.08, 0.5, facecolor=style.GREY, alpha=0.45))
                start = (at + 1) * launch
            else:
                start = launch + at * (kernel + (gap if row == 1 else 0.0))
            axes.add_patch(Rectangle((start, y), kernel, 0.6, facecolor=style.OURS, alpha=0.85, edgecolor=style.PAPER))
            if row == 2 and at:  # nobody runs before the first
                axes.add_patch(Rectangle((start - 0.45, y), 0.45, 0.6, facecolor=style.SKY, alpha=0.6, edgecolor=style.PAPER))
            ends[row] = start + kernel
        if row:
            axes.add_patch(Rectangle((0, y + 0.75), launch - 0.08, 0.5, facecolor=style.GREY, alpha=0.45))
    patches = [
        Rectangle((0, 0), 1, 1, color=style.GREY, alpha=0.45, label="CPU: a launch"),
        Rectangle((0, 0), 1, 1, color=style.OURS, alpha=0.85, label="GPU: a kernel"),
        Rectangle((0, 0), 1, 1, color=style.SKY, alpha=0.6, label="its first weights, on their way"),
    ]
    axes.legend(handles=patches, loc="lower right", fontsize=8.5)
    axes.set_xlim(-3.6, ends[0] + 0.3)
    axes.set_ylim(0.2, 5.7)
    axes.axis("off")
    return style.picture(
        figure,
        f"Three timelines of {kernels} kernels, a row for the CPU and one for the GPU. v3: the CPU takes longer to launch each kernel than the GPU to run it, so the "
        f"GPU waits between any two; it ends after {ends[0]:g} times a kernel's time. v4: one launch, then the kernels with small gaps; {ends[1]:g}. v6: no gaps, for "
        f"each kernel asks for its first weights while the one before runs; {ends[2]:g}.",
    )


@style.look()
def token_bytes(rows: Mapping[str, Mapping[str, float]], gb_per_s: float) -> style.Picture:
    """Bars of the bytes that a token reads, by part ("layers", "head", "keys and values"), and the tokens/s that a bandwidth allows."""
    figure, axes = style.figure(height=1.1 + 0.36 * len(rows))
    for row, parts in enumerate(rows.values()):
        left = 0.0
        for part, colour in _PARTS.items():
            size = parts.get(part, 0) / 1e9
            axes.barh(row, size, left=left, color=colour, alpha=0.85, height=0.65, label=part if row == 0 else None)
            left += size
        axes.text(left, row, f"  {gb_per_s / left:,.0f} tokens/s", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, max(sum(parts.values()) for parts in rows.values()) / 1e9 * 1.22)
    axes.set_xlabel(f"GB that a token reads; tokens/s at {gb_per_s:,.0f} GB/s")
    axes.legend(ncols=len(_PARTS), loc="lower center", bbox_to_anchor=(0.45, 1.0), fontsize=8.5)
    told = "; ".join(
        f"{name}: {', '.join(f'{part} {size / 1e9:.2f}' for part, size in parts.items() if size)}, {gb_per_s * 1e9 / sum(parts.values()):,.0f} tokens/s"
        for name, parts in rows.items()
    )
    return style.picture(figure, f"GB that a token reads, and what {gb_per_s:,.0f} GB/s allow. {told}.")


@style.look()
def batch_timeline(rows: Mapping[str, str], pages: Sequence[int], num_pages: int) -> style.Picture:
    """Who is in which pass. rows: of each request a letter a pass, "w" waits, "p" reads its prompt, "d" gets a token, "x" gave its pages back, " " not
    there; pages: how many are held after each pass, of num_pages."""
    for name, states in rows.items():
        if len(states) != len(pages) or set(states) - {*_STATES, " "}:
            raise ValueError(f"batch_timeline: {name} is {states!r}; it needs one of {' '.join(_STATES)} or a space for each of {len(pages)} passes")
    figure, (axes, below) = style.figure(2, 1, height=1.5 + 0.3 * len(rows), sharex=True, height_ratios=[max(2.0, 0.45 * len(rows)), 1.0])
    for row, states in enumerate(rows.values()):
        for at, state in enumerate(states):
            if state != " ":
                _, colour, alpha = _STATES[state]
                axes.add_patch(Rectangle((at + 0.04, row + 0.1), 0.92, 0.8, facecolor=colour, alpha=alpha, linewidth=0))
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([row + 0.5 for row in range(len(rows))], list(rows))
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    seen = [state for state in _STATES if any(state in states for states in rows.values())]
    patches = [Rectangle((0, 0), 1, 1, facecolor=_STATES[state][1], alpha=_STATES[state][2], label=_STATES[state][0]) for state in seen]
    axes.legend(handles=patches, ncols=len(seen), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8.5)
    below.bar([at + 0.5 for at in range(len(pages))], pages, width=0.92, color=style.GREEN, alpha=0.7)
    below.axhline(num_pages, color=style.LIMIT, linestyle="--", linewidth=1)
    below.set_ylabel("pages")
    below.set_xlabel("pass")
    below.set_xlim(0, len(pages))
    below.set_ylim(0, num_pages * 1.15)
    told = "; ".join(f"{name}: {', '.join(f'{_STATES[s][0]} in {states.count(s)}' for s in _STATES if s in states)}" for name, states in rows.items())
    return style.picture(figure, f"{len(pages)} passes, a row for each request. {told}. Below: pages held, at most {max(pages)} of {num_pages}.")


@style.look()
def engine_ladder(frame) -> style.Picture:
    """Rows of engine.csv for one model and batch as bars of tokens/s, peers in grey, with the rate that the bytes alone would allow."""
    shown = frame[frame["tokens_per_s"].notna()]
    figure, axes = style.figure(height=0.8 + 0.36 * len(shown))
    names = [_named(row) for row in shown.to_dict("records")]
    axes.barh(range(len(shown)), shown["tokens_per_s"], color=[style.PEER if kind == "peer" else style.OURS for kind in shown["kind"]], height=0.65)
    for place, (rate, share) in enumerate(zip(shown["tokens_per_s"], shown["share_of_limit"])):
        known = share == share and share > 0
        axes.text(rate / share if known else rate, place, f"  {rate:,.0f}" + (f", {share:.0%}" if known else ""), va="center", fontsize=9)
        if known:
            axes.plot([rate / share] * 2, [place - 0.4, place + 0.4], color=style.LIMIT, linewidth=1.5)
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    most = max(max(rate, rate / share if share == share and share > 0 else 0) for rate, share in zip(shown["tokens_per_s"], shown["share_of_limit"]))
    axes.set_xlim(0, most * 1.3)
    axes.set_xlabel("tokens/s; a dark line: what the bytes allow")
    told = "; ".join(f"{name} {rate:,.0f}" for name, rate in zip(names, shown["tokens_per_s"]))
    return style.picture(figure, f"Tokens a second: {told}.")


def _named(row: Mapping[str, str]) -> str:
    """A row by its runner and weights, and by head and cache where these are quantised."""
    beside = [f"{part} {row[part]}" for part in ("head", "cache") if row.get(part, "bf16") != "bf16"]
    return ", ".join([row["runner"], row["weights"], *beside])
