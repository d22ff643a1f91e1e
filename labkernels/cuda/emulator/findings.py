"""What the sanitizer found, in words: which thread did what to which array, at which line."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

from labkernels.cuda.source import Source, without_comments

KINDS = ("out_of_bounds", "race", "uninitialized", "barrier_divergence", "misaligned", "deadlock", "timeout")

_VERBS = {0: "reads", 1: "writes", 2: "updates (atomic)"}
_PAST = {0: "read", 1: "wrote", 2: "updated (atomic)"}


@dataclass(frozen=True)
class Finding:
    """One mistake of a kernel.

    `kind` is one of KINDS. `block` is the block's index and `threads` those of the threads concerned, the culprit first: an int each
    where the grid (or block) has one axis, else a tuple (x, y, z). `array` and `index` name the element that was touched, where
    there is one; `file` and `line` are the place in the source. `text` says it all in a sentence.
    """

    kind: str
    text: str
    kernel: str
    block: int | tuple[int, int, int]
    threads: tuple
    array: str | None
    index: int | None
    file: str | None
    line: int | None

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass
class SanitizerReport:
    """The findings of one launch, in the order in which they happened; `clean` if there are none."""

    kernel: str
    findings: list[Finding] = field(default_factory=list)
    source: Source | None = None

    @property
    def clean(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        if self.clean:
            return f"{self.kernel}: the sanitizer found nothing"
        shown = [f"  {finding}{self._source_line(finding)}" for finding in self.findings[:8]]
        more = [f"  ... and {len(self.findings) - 8} more"] if len(self.findings) > 8 else []
        count = f"{len(self.findings)} finding{'s' if len(self.findings) > 1 else ''}"
        return "\n".join([f"{self.kernel}: {count}", *shown, *more])

    __repr__ = __str__

    def _source_line(self, finding: Finding) -> str:
        text = self.source.line(finding.line) if self.source and finding.line and finding.file == self.source.filename else None
        return f"\n      {finding.line} | {text.strip()}" if text else ""

    def _repr_html_(self) -> str:
        if self.clean:
            return f"<p><b>{html.escape(self.kernel)}</b>: the sanitizer found nothing</p>"
        rows = "".join(
            f"<tr><td style='text-align:left'><b>{f.kind}</b></td><td style='text-align:left'>{html.escape(f.text)}</td>"
            f"<td style='text-align:left'><code>{html.escape(self._source_line(f).strip())}</code></td></tr>"
            for f in self.findings[:8]
        )
        return f"<table><caption>{html.escape(self.kernel)}: the sanitizer's findings</caption>{rows}</table>"


_REACHES = {  # into another block's shared memory, while that block is not surely there
    "early": "before anything tells that it has started: cluster_sync() comes first",
    "late": "which may have left the kernel by then: a cluster_sync() after the last access keeps it there",
}

_IN_WORDS = {  # findings about what runs beside the threads, where there is no array to name
    "barrier: again": "arrives at a named barrier a second time before the others have come: it has not waited to be told that they did",
    "wgmma: unfenced": "issues a wgmma whose registers were used since the last wgmma_fence(), or no wgmma_fence() came before",
    "wgmma: read": "reads registers that a wgmma may still be writing: wgmma_wait() is missing, or lets too many groups go on",
    "wgmma: write": "writes registers that a wgmma may still be using: wgmma_wait() is missing, or lets too many groups go on",
    "wgmma: uncommitted": "uses the registers of a wgmma that no wgmma_commit() has closed into a group, so that nothing waits for it",
    "wgmma: left": "leaves the kernel while its wgmma may still be running: wgmma_commit() or wgmma_wait() is missing",
    "copy: left": "leaves the kernel while its asynchronous copy may still be reading shared memory: tma_commit() or tma_wait_read() is missing",
}


class Describer:
    """Makes findings of the runtime's raw rows. `arrays` are the regions' names, sizes in bytes and bytes an element."""

    def __init__(self, kernel: str, source: Source, grid, block, arrays: list[tuple[str, int, int]], place):
        self.kernel, self.source, self.grid, self.block = kernel, source, grid, block
        self.arrays, self.place = arrays, place

    def describe(self, row: dict) -> Finding | None:
        """A finding, or None for what turns out to be none: barriers in two places of the code that are one line of the source."""
        kind = (*KINDS, "crash")[row["kind"]]
        other = self.place(row["other_pc"]) if row["other_pc"] else None
        file, line = self.place(row["pc"]) or (kind == "timeout" and other) or (None, None)
        if kind == "barrier_divergence" and row["text"] == "elsewhere" and other == (file, line):
            return None
        if row["text"].startswith("says|"):  # the runtime's own words
            text, threads, array, index = f"{self._who(row)} {row['text'][5:]}", [self._thread(row["thread"])], None, None
        else:
            text, threads, array, index = getattr(self, f"_{kind}")(row, other, line)
        kind = "out_of_bounds" if kind == "crash" else kind
        where = f"{text} ({file} line {line})" if line else text
        return Finding(kind, where, self.kernel, self._index(row["block"], self.grid), tuple(threads), array, index, file, line)

    # Each of these gives text, threads, array, index.

    def _out_of_bounds(self, row, other, line):
        who, thread = self._who(row), self._thread(row["thread"])
        if row["text"]:  # an index of an array whose type is known: "'float [16]'"
            declared = row["text"].strip("'")
            match = re.search(r"\[(\d+)\]", declared)
            array, index = self._array_at(line, declared), row["offset"]
            size = match.group(1) if match else "?"
            return f"{who} uses index {index} of {array or 'an array'} in a dimension of {size} ({declared})", [thread], array, index
        verb, size = _VERBS[row["access"]], f"{row['bytes']} bytes"
        if row["region"] < 0:
            what = "a null pointer" if row["address"] < 65536 else f"address {row['address']:#x}, which belongs to no array"
            return f"{who} {verb} {size} through {what}", [thread], None, None
        name, index, length = self._element(row)
        item = self.arrays[row["region"]][2] or row["bytes"]
        what = f"{name}[{index}]" if row["bytes"] <= item else f"{size} from {name}[{index}] on"
        what += self._of_owner(row)
        return f"{who} {verb} {what}, but {name} has {length} element{'s' if length != 1 else ''}", [thread], name, index

    def _misaligned(self, row, other, line):
        thread, verb, size = self._thread(row["thread"]), _VERBS[row["access"]], row["bytes"]
        if row["text"]:  # "swizzle|written|read"
            written, read = (f"a swizzle of {n} bytes" if n != "0" else "no swizzle" for n in row["text"].split("|")[1:])
            name, index, _ = self._element(row)
            text = f"the wgmma of {self._who(row)} reads {name} with {read} (byte {row['offset']}), which the tensor map wrote with {written}"
            return text, [thread], name, index
        if row["region"] < 0:
            return f"{self._who(row)} {verb} {size} bytes at {row['address']:#x}, which is no multiple of {size}", [thread], None, None
        name, index, _ = self._element(row)
        item = self.arrays[row["region"]][2]
        where = (f"{name}[{index}]" if item else f"byte {row['offset']} of {name}") + self._of_owner(row)
        return f"{self._who(row)} {verb} {size} bytes at {where}, whose address is no multiple of {size}", [thread], name, index

    def _uninitialized(self, row, other, line):
        thread = self._thread(row["thread"])
        if row["text"]:
            what = row["text"].split(":")[0]
            return f"{self._who(row)} takes in {what} the value of lane {row['offset']}, which takes no part in it", [thread], None, None
        name, index, _ = self._element(row)
        return f"{self._who(row)} reads {name}[{index}]{self._of_owner(row)}, which no thread of the block has written", [thread], name, index

    def _race(self, row, other, line):
        if row["text"] in _IN_WORDS:
            return f"{self._who(row)} {_IN_WORDS[row['text']]}", [self._thread(row["thread"])], None, None
        name, index, _ = self._element(row)
        if row["text"].startswith("reach: "):
            when, actor = row["text"].removeprefix("reach: ").split("|")
            who = (f"the {actor} of " if actor else "") + self._who(row)
            text = f"{who} {_VERBS[row['access']]} {name}[{index}]{self._of_owner(row)}, {_REACHES[when]}"
            return text, [self._thread(row["thread"])], name, index
        if row["text"].startswith("kernel before|"):
            who = f"the {actor} of {self._who(row)}" if (actor := row["text"].partition("|")[2]) else self._who(row)
            text = f"{who} {_VERBS[row['access']]} {name}[{index}] before grid_dependency_wait(), while the kernel launched before may be using it"
            return text, [self._thread(row["thread"])], name, index
        thread, second = self._thread(row["thread"]), self._thread(row["other_thread"])
        block = "" if row["other_block"] == row["block"] else f" of block {self._index(row['other_block'], self.grid)}"
        place = f" at line {other[1]}" if other and other[1] != line else ""
        mine, theirs, hint = row["text"].split("|") if row["text"] else ("", "", "")
        who, whom = (f"the {what} of " if what else "" for what in (mine, theirs))
        why = f"and no fence_proxy_async() of thread {second} lies between" if hint == "proxy" else "and nothing orders the two"
        if hint == "blocks":
            why += ": between blocks cluster_sync() does, or mbarrier_arrive_remote() and mbarrier_wait_cluster()"
        text = f"{who}{self._who(row)} {_VERBS[row['access']]} {name}[{index}]{self._of_owner(row)}, which {whom}thread {second}{block} {_PAST[row['other_access']]}{place}, {why}"
        return text, [thread, second], name, index

    def _barrier_divergence(self, row, other, line):
        waiting, others = self._thread(row["thread"]), [self._thread(t) for t in _bits(row["threads"])]
        what, _, why = row["text"].rpartition(": ")
        block = self._index(row["block"], self.grid)
        if what == "cluster":
            there = self._index(row["other_block"], self.grid)
            text = f"threads of block {block} wait at cluster_sync that {_list(others)} of block {there} never reach{_s(others)}: {_have(others)} left the kernel"
            return text, [waiting, *others], None, None
        if why == "exited":
            text = f"threads of block {block} wait at __syncthreads that {_list(others)} never reach{_s(others)}: {_have(others)} left the kernel"
            return text, [waiting, *others], None, None
        if why == "elsewhere":
            text = f"threads of block {block} wait at two __syncthreads: thread {waiting} here, {_list(others)} at line {other[1] if other else '?'}"
            return text, [waiting, *others], None, None
        if why == "not in mask":
            return f"{self._who(row)} calls {what} with a mask that does not name its own lane", [waiting], None, None
        text = f"{self._who(row)} calls {what} with a mask that names {_list(others)}, which {_has(others)} left the kernel or never existed"
        return text, [waiting, *others], None, None

    def _deadlock(self, row, other, line):
        here, _, there = row["text"].partition("|")
        waiting = [self._thread(t) for t in _bits(row["threads"])]
        text = f"{_list(waiting)} of block {self._index(row['block'], self.grid)} wait{_s(waiting)} at {here}"
        if there:
            block = "" if row["other_block"] == row["block"] else f" of block {self._index(row['other_block'], self.grid)}"
            text += f" while thread {self._thread(row['other_thread'])}{block} waits at {there}" + (f" at line {other[1]}" if other else "")
        return f"{text}, and no thread can go on", waiting, None, None

    def _timeout(self, row, other, line):
        return f"{self._who(row)} still runs when the time limit passes", [self._thread(row["thread"])], None, None

    def _crash(self, row, other, line):
        return f"{self._who(row)}: {row['text']}", [self._thread(row["thread"])], None, None

    def _who(self, row) -> str:
        return f"thread {self._thread(row['thread'])} of block {self._index(row['block'], self.grid)}"

    def _thread(self, linear: int):
        x, y, _ = self.block
        return self._index((linear % x, linear // x % y, linear // x // y), self.block)

    def _of_owner(self, row) -> str:
        """` of block 1`, where what is touched is another block's shared memory."""
        if row["owner"] < 0:
            return ""
        x, y, _ = self.grid
        return f" of block {self._index((row['owner'] % x, row['owner'] // x % y, row['owner'] // x // y), self.grid)}"

    @staticmethod
    def _index(index, shape):
        return index[0] if shape[1] == shape[2] == 1 else tuple(index)

    def _element(self, row) -> tuple[str, int, int]:
        name, size, item = self.arrays[row["region"]]
        item = item or row["bytes"]
        return name, row["offset"] // item, size // item

    def _array_at(self, line: int | None, declared: str) -> str | None:
        """The array that source line `line` indexes, whose type is `declared` or contains it."""
        text = without_comments(self.source.text)
        lines = text.splitlines()
        number = (line or 0) - self.source.first_line
        if not 0 <= number < len(lines):
            return None
        names = list(dict.fromkeys(re.findall(r"\b([A-Za-z_]\w*)\s*\[", lines[number])))
        element = declared.split("[")[0].strip().removeprefix("const ").removeprefix("volatile ")
        for name in names:
            if re.search(rf"\b{re.escape(element)}\b[^;(){{}}]*\b{name}\s*\[[^\]]", text):
                return name
        return names[0] if len(names) == 1 else None


def _bits(words: list[int]) -> list[int]:
    return [32 * i + bit for i, word in enumerate(words) for bit in range(32) if word >> bit & 1]


def _list(threads: list) -> str:
    """`thread 3`, `threads 4 to 7`, `threads 1, 5, 9, ... (12 in all)`."""
    if len(threads) == 1:
        return f"thread {threads[0]}"
    if isinstance(threads[0], int) and threads == list(range(threads[0], threads[-1] + 1)):
        return f"threads {threads[0]} to {threads[-1]}"
    shown = ", ".join(str(t) for t in threads[:4])
    return f"threads {shown}" + (f", ... ({len(threads)} in all)" if len(threads) > 4 else "")


def _s(threads: list) -> str:
    return "s" if len(threads) == 1 else ""


def _has(threads: list) -> str:
    return "has" if len(threads) == 1 else "have"


def _have(threads: list) -> str:
    return "it has" if len(threads) == 1 else "they have"
