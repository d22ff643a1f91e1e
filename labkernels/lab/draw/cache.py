"""Pictures of the KV cache: who reads what at each token, pages and the tables that find them, and the splits of a long sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style


@style.look()
def cached_tokens(prompt: int = 4, generated: int = 4) -> style.Picture:
    """Which keys are computed at each step of a generation, without a cache and with one."""
    total = prompt + generated
    figure, panels = style.figure(1, 2, height=2.7)
    for axes, cached in zip(panels, (False, True)):
        for step in range(generated + 1):
            for token in range(prompt + step):
                fresh = not cached or step == 0 or token == prompt + step - 1
                axes.add_patch(Rectangle((token, step), 0.9, 0.8, facecolor=style.ORANGE if fresh else style.SKY, alpha=0.85 if fresh else 0.5))
        axes.set_title("with a cache" if cached else "without a cache", fontsize=10)
        axes.set_xlim(-0.2, total)
        axes.set_ylim(generated + 1, -0.2)
        axes.set_xlabel("keys and values, by token")
        axes.set_yticks([step + 0.4 for step in range(generated + 1)], ["prompt", *(f"+{step}" for step in range(1, generated + 1))])
        axes.set_xticks([])
    handles = [Rectangle((0, 0), 1, 1, color=style.ORANGE, alpha=0.85, label="computed"), Rectangle((0, 0), 1, 1, color=style.SKY, alpha=0.5, label="read")]
    panels[1].legend(handles=handles, loc="upper right")
    without = sum(prompt + step for step in range(generated + 1))
    return style.picture(
        figure,
        f"Two staircases, a row a step: the prompt of {prompt} tokens, then {generated} generated tokens. Without a cache all keys are computed in every row, "
        f"{without} in all. With a cache the prompt's are computed once and each later row computes one: {prompt + generated} in all; the rest is read.",
    )


@style.look()
def cache_pages(tables: Mapping[str, Sequence[int]] | None = None, pages: int = 8, last: Mapping[str, int] | None = None, page_size: int = 4) -> style.Picture:
    """Sequences, their block tables, and the pages that these name. A page that two tables name is shared."""
    tables = {"first": [5, 0, 3], "second": [5, 0, 6]} if tables is None else dict(tables)
    last = {name: 2 for name in tables} if last is None else dict(last)
    held = [page for table in tables.values() for page in table]
    if not tables or any(not 0 <= page < pages for page in held):
        raise ValueError(f"cache_pages: every table names pages from 0 to {pages - 1}")
    figure, axes = style.figure(height=1.1 + 0.75 * len(tables))
    top = len(tables) * 1.1
    for page in range(pages):
        users = sum(page in table for table in tables.values())
        colour = style.LIGHT if not users else style.SKY if users == 1 else style.GREEN
        for slot in range(page_size):
            ends = [last[name] for name, table in tables.items() if table and table[-1] == page]
            full = users and (not ends or slot < max(ends))
            axes.add_patch(Rectangle((page * 1.5 + slot * 1.2 / page_size, 0), 1.2 / page_size, 0.55, facecolor=colour if full else style.PAPER, alpha=0.8 if full else 1, edgecolor=style.GREY, linewidth=0.7))
        axes.text(page * 1.5 + 0.6, -0.2, f"page {page}", ha="center", va="center", fontsize=8.5)
    for row, (name, table) in enumerate(tables.items()):
        y = top - row * 1.1
        axes.text(-0.2, y + 0.2, name, ha="right", va="center", fontsize=9)
        for index, page in enumerate(table):
            axes.add_patch(Rectangle((index * 0.8, y), 0.7, 0.4, facecolor=style.SERIES[row % len(style.SERIES)], alpha=0.35, edgecolor=style.GREY, linewidth=0.7))
            axes.text(index * 0.8 + 0.35, y + 0.2, str(page), ha="center", va="center", fontsize=9)
            axes.add_patch(FancyArrowPatch((index * 0.8 + 0.35, y - 0.03), (page * 1.5 + 0.6, 0.62), arrowstyle="-|>", mutation_scale=8, color=style.SERIES[row % len(style.SERIES)], linewidth=0.9, shrinkA=0, shrinkB=0))
    axes.set_xlim(-1.6, pages * 1.5)
    axes.set_ylim(-0.45, top + 0.6)
    axes.axis("off")
    listed = "; ".join(f"{name}: {', '.join(map(str, table))}" for name, table in tables.items())
    shared = sorted({page for page in held if held.count(page) > 1})
    return style.picture(
        figure,
        f"Block tables above a row of {pages} pages of {page_size} tokens each, with arrows from each entry to its page. {listed}. "
        + (f"Pages {', '.join(map(str, shared))} are shared." if shared else "No page is shared."),
    )


@style.look()
def split_keys(blocks: int = 4) -> style.Picture:
    """One query and a long sequence of keys: by one block, and split over several whose partial results are merged."""
    if not 1 <= blocks <= len(style.SERIES):
        raise ValueError(f"split_keys: blocks is {blocks}; it must be from 1 to {len(style.SERIES)}")
    figure, axes = style.figure(height=2.6)
    axes.add_patch(Rectangle((0, 2.0), 8, 0.45, facecolor=style.SERIES[0], alpha=0.75))
    axes.text(4, 2.22, "one block walks over all keys", ha="center", va="center", fontsize=9)
    width = 8 / blocks
    for block in range(blocks):
        axes.add_patch(Rectangle((block * width, 0.9), width - 0.1, 0.45, facecolor=style.SERIES[block], alpha=0.75))
        axes.text(block * width + width / 2, 1.12, f"block {block}", ha="center", va="center", fontsize=9)
        axes.add_patch(FancyArrowPatch((block * width + width / 2, 0.85), (4, 0.42), arrowstyle="-|>", mutation_scale=10, color=style.INK, shrinkA=0, shrinkB=0))
    axes.add_patch(Rectangle((3.2, 0.0), 1.6, 0.4, facecolor=style.GREEN, alpha=0.8))
    axes.text(4, 0.2, "merge", ha="center", va="center", fontsize=9)
    axes.text(8.25, 2.22, "one multiprocessor busy", va="center", fontsize=9)
    axes.text(8.25, 1.12, f"{blocks} busy", va="center", fontsize=9)
    axes.set_xlim(-0.1, 11.3)
    axes.set_ylim(-0.1, 2.6)
    axes.axis("off")
    return style.picture(figure, f"Above, one long bar: a block walks over all keys. Below, the same bar in {blocks} pieces, a block each, with arrows to a small box that merges them.")
