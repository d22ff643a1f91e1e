"""Pictures of a profile: what each lane of a warp touches in a line, and how far warps were when they came to barriers."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from labkernels.errors import ArgumentError
from labkernels.lab import style

LANES, SECTOR_BYTES, BANKS, WORD_BYTES = 32, 32, 32, 4
_SECTORS_DRAWN = 48
_BARRIERS_DRAWN = 24


@style.look()
def plot_line(profile, line: int, kind: str | None = None) -> style.Picture:
    """One request of each access in `line` of the kernel's source, that of the most lanes: lanes down, memory across.

    For global memory the 32-byte sectors that move are drawn, beside each other where they are neighbours; for shared memory the 32
    banks, each lane's word blue if its bank gives it in the first pass, red if in a later one. `kind` leaves out all accesses
    but those of one kind. Raises ArgumentError for a line that has none.
    """
    requests = {}
    for sample in profile.samples:
        if (sample.file, sample.line) != (profile.source.filename, line) or sample.kind.startswith("local") or kind not in (None, sample.kind):
            continue
        known = requests.get((sample.pc, sample.kind))
        if known is None or len(sample.addresses) > len(known.addresses):
            requests[sample.pc, sample.kind] = sample
    if not requests:
        touched = sorted({s.line for s in profile.samples if s.file == profile.source.filename and not s.kind.startswith("local")})
        what = f"has no {kind.replace('_', ' ')}" if kind else "touches no global or shared memory"
        raise ArgumentError(f"{profile.kernel}: line {line} {what}; these lines do: {touched}")
    figure, panels = style.figure(len(requests), 1, height=3.1 * len(requests), squeeze=False)
    told = []
    for axes, sample in zip(panels[:, 0], requests.values()):
        told.append(_banks(axes, sample) if sample.kind.startswith("shared") else _sectors(axes, sample))
        axes.set_ylim(LANES - 0.4, -0.6)
        axes.set_yticks([0, 8, 16, 24, 31])
        axes.set_ylabel("lane")
    text = (profile.source.line(line) or "").strip()
    return style.picture(figure, f"What the lanes of one warp touch in line {line} of {profile.kernel}, {text}: {'; '.join(told)}.")


def _sectors(axes: Axes, sample) -> str:
    """Lanes by sectors, those between which nothing moves drawn with a gap. Gives the panel in words."""
    begins = sample.array_begins % SECTOR_BYTES  # sectors are counted from multiples of 32 in memory, not from the array's beginning
    first = {lane: address + begins for lane, address in sample.addresses.items()}
    sectors = sorted({s for a in first.values() for s in range(a // SECTOR_BYTES, (a + sample.bytes - 1) // SECTOR_BYTES + 1)})
    drawn = sectors[:_SECTORS_DRAWN]
    places, x = {}, 0.0
    for i, sector in enumerate(drawn):
        x += 0 if i == 0 else 1.0 if sector == drawn[i - 1] + 1 else 1.35
        places[sector] = x
        axes.add_patch(Rectangle((x, -0.6), 1, LANES + 0.2, facecolor=style.MEMORY["global"], alpha=0.3, edgecolor=style.PAPER, linewidth=1.5))
    for lane, address in first.items():
        for sector in range(address // SECTOR_BYTES, (address + sample.bytes - 1) // SECTOR_BYTES + 1):
            if sector in places:
                low, high = max(address, sector * SECTOR_BYTES), min(address + sample.bytes, (sector + 1) * SECTOR_BYTES)
                left = places[sector] + (low - sector * SECTOR_BYTES) / SECTOR_BYTES
                axes.add_patch(Rectangle((left, lane - 0.45), (high - low) / SECTOR_BYTES, 0.9, facecolor=style.BLUE, edgecolor="none"))
    axes.set_xlim(-0.1, max(x + 1.1, 4.1))
    every = max(1, -(-len(drawn) // 8))
    axes.set_xticks([places[s] for s in drawn[::every]], [str(s * SECTOR_BYTES - begins) for s in drawn[::every]])
    axes.set_xlabel(f"bytes from the beginning of {sample.array}; each box is a sector of {SECTOR_BYTES} bytes" + (" (first ones)" if len(drawn) < len(sectors) else ""))
    asked, moved = sample.bytes * len(first), SECTOR_BYTES * len(sectors)
    told = f"{_verb(sample)} {sample.array}, {len(first)} lanes ask for {asked} bytes and {len(sectors)} sector{_s(len(sectors))}, {moved} bytes, move"
    axes.set_title(f"{_verb(sample)} {sample.array}: {asked} bytes asked, {len(sectors)} sector{_s(len(sectors))} moved ({moved} bytes)", fontsize=10)
    return told


def _banks(axes: Axes, sample) -> str:
    """Lanes by banks of shared memory. Gives the panel in words."""
    group = 8 if sample.bytes > 8 else 16 if sample.bytes > 4 else 32  # lanes served together: a quarter, a half, a whole warp
    lanes = list(sample.addresses)
    passes = fewest = 0
    for bank in range(BANKS):
        axes.add_patch(Rectangle((bank, -0.6), 1, LANES + 0.2, facecolor=style.MEMORY["shared"], alpha=0.25, edgecolor=style.PAPER, linewidth=1.0))
    for start in range(0, len(lanes), group):
        words: dict[int, list[int]] = {bank: [] for bank in range(BANKS)}
        for lane in lanes[start : start + group]:
            address = sample.addresses[lane]
            for word in range(address // WORD_BYTES, (address + sample.bytes - 1) // WORD_BYTES + 1):
                bank = word % BANKS
                if word not in words[bank]:
                    words[bank].append(word)
                colour = style.BLUE if words[bank][0] == word else style.RED
                axes.add_patch(Rectangle((bank + 0.1, lane - 0.4), 0.8, 0.8, facecolor=colour, edgecolor="none"))
        passes += max(len(found) for found in words.values())
        fewest += 1
    axes.set_xlim(-0.1, BANKS + 0.1)
    axes.set_xticks([bank + 0.5 for bank in (0, 8, 16, 24, 31)], ["0", "8", "16", "24", "31"])
    axes.set_xlabel("bank of shared memory")
    conflicts = passes - fewest
    counts = f"{passes} pass{'es' if passes > 1 else ''}, {conflicts} bank conflict{_s(conflicts)}"
    axes.set_title(f"{_verb(sample)} {sample.array}: {counts}", fontsize=10)
    return f"{_verb(sample)} {sample.array}, {len(lanes)} lanes need {counts}"


@style.look()
def plot_barriers(profile) -> style.Picture:
    """How many requests each warp of the first block had made when it came to each barrier: whoever made fewer waits for the others.

    Raises ArgumentError for a kernel without barriers.
    """
    arrivals = profile.arrivals
    if arrivals is None or arrivals.empty:
        raise ArgumentError(f"{profile.kernel}: no warp came to a barrier")
    block = int(arrivals["block"].min())
    warps = {int(warp): group["requests"].to_numpy() for warp, group in arrivals[arrivals["block"] == block].groupby("warp")}
    count = min(max(len(made) for made in warps.values()), _BARRIERS_DRAWN)
    figure, axes = style.figure(height=min(1.3 + 0.28 * len(warps), 7))
    widest = 0
    for barrier in range(count):
        there = [(warp, made[barrier]) for warp, made in warps.items() if len(made) > barrier]
        axes.plot([made for _, made in there], [warp for warp, _ in there], color=style.GREY, linewidth=0.8, zorder=1)
        widest = max(widest, int(np.ptp([made for _, made in there])))
    for warp, made in warps.items():
        shown = made[:count]
        axes.plot([0, shown[-1]], [warp, warp], color=style.MEMORY["shared"], linewidth=5, alpha=0.5, solid_capstyle="butt", zorder=0)
        axes.plot(shown, [warp] * len(shown), "|", color=style.BLUE, markersize=11, markeredgewidth=2)
    axes.set_yticks(sorted(warps)[:: max(1, len(warps) // 8)])
    axes.set_ylim(max(warps) + 0.7, min(warps) - 0.7)
    axes.set_xlim(left=0)
    axes.set_ylabel("warp")
    axes.set_xlabel("requests to memory made so far")
    more = "" if count == max(len(made) for made in warps.values()) else f" (the first {count})"
    axes.set_title(f"block {block}: where its warps met at barriers{more}", fontsize=10)
    return style.picture(
        figure,
        f"One line for each of the {len(warps)} warps of block {block} of {profile.kernel}, with a mark at each of {count} barriers where the "
        f"warp came to it, by the requests that it had made. Thin lines join the warps at a barrier; the furthest are {widest} requests apart.",
    )


def _verb(sample) -> str:
    return {"load": "load from", "store": "store to", "atomic": "atomic on"}[sample.kind.split("_")[1]]


def _s(count: int) -> str:
    return "" if count == 1 else "s"
