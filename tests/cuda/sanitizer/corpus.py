"""Small kernels and what the sanitizer must say about them, read from the comments at the head of each file.

`kernels/*.cu` hold a mistake and its correction each, `clean/*.cu` a correct kernel that might be mistaken for a wrong one.
README.md beside this file explains the notation.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
KINDS = ("out_of_bounds", "race", "uninitialized", "barrier_divergence", "misaligned", "deadlock", "timeout")
FIELDS = ("expect", "launch", "launch bad", "launch good", "array", "index", "block", "threads", "result")

_FIELD = re.compile(r"^// ([a-z ]+): (.*)$", re.MULTILINE)
_ARGUMENT = re.compile(r"(\w+)(?::(\w+))?(?:\[([\d,]+)\])?(?:<(\d+))?(?:=([^,\[\]]+))?(?:,|$)")


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched. `arguments` is the text behind `args=`; `tensors` makes of it what a kernel is called with."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_mem: int
    arguments: str

    @classmethod
    def parse(cls, text: str) -> Launch:
        words = dict(word.split("=", 1) for word in text.split(" "))
        grid, block, arguments = words.pop("grid"), words.pop("block"), words.pop("args")
        shared_mem = int(words.pop("shared_mem", "0"))
        if words:
            raise ValueError(f"a launch has grid, block, shared_mem and args, not {', '.join(words)}")
        return cls(*(tuple(int(n) for n in size.split("x")) for size in (grid, block)), shared_mem, arguments)

    def values(self, seed: int = 0) -> dict[str, object]:
        """The arguments by name, in order: random tensors, numbers, None. The same seed gives the same values."""
        generator = torch.Generator().manual_seed(seed)
        values: dict[str, object] = {}
        end = 0
        for match in _ARGUMENT.finditer(self.arguments):
            if match.start() != end:
                break
            name, dtype, shape, below, value = match.groups()
            values[name] = values[value] if value in values else _value(dtype, shape, below, value, generator)
            end = match.end()
        if end != len(self.arguments):
            raise ValueError(f"args: cannot read {self.arguments[end:]!r}")
        return values


def _value(dtype: str | None, shape: str | None, below: str | None, value: str | None, generator: torch.Generator) -> object:
    if shape is None:
        return None if value == "null" else float(value) if "." in value else int(value)
    dtype = getattr(torch, dtype or "float32")
    shape = tuple(int(n) for n in shape.split(","))
    if value is not None:
        return torch.full(shape, float(value)).to(dtype)
    if dtype.is_floating_point:
        return (2 * torch.rand(shape, generator=generator) - 1).to(dtype)
    low, high = (0, int(below)) if below else (0, 256) if dtype == torch.uint8 else (-100, 100)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


@dataclass(frozen=True)
class Example:
    """One file: a pair of kernels `bad` and `good`, or (`expect: clean`) the kernel `good` alone."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def fields(self) -> dict[str, list[str]]:
        """What the lines `// field: value` of the head say; a field may stand more than once."""
        head = re.match(r"(//[^\n]*\n)*", self.text).group()
        fields: dict[str, list[str]] = {}
        for name, value in _FIELD.findall(head):
            fields.setdefault(name, []).append(value.strip())
        return fields

    def field(self, name: str) -> str | None:
        return self.fields[name][0] if name in self.fields else None

    @property
    def expect(self) -> str:
        """The kind of finding that `bad` must give, or `clean`."""
        return self.field("expect")

    def launch(self, kernel: str) -> Launch:
        """The launch of `bad` or `good`."""
        return Launch.parse(self.field(f"launch {kernel}") or self.field("launch"))

    @cached_property
    def culprits(self) -> set[int]:
        """The numbers of the lines marked `// <-- here`."""
        return {number for number, line in enumerate(self.text.splitlines(), 1) if line.endswith("// <-- here")}

    def expected_results(self, before: dict[str, object]) -> dict[str, torch.Tensor]:
        """What `good` must leave in its tensors, from their values before the launch."""
        copies = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in before.items()}
        results = {}
        for line in self.fields["result"]:
            name, expression = line.split(" = ", 1)
            results[name] = eval(expression, {"torch": torch, "struct": struct, **copies})
        return results


PAIRS = [Example(path) for path in sorted((FOLDER / "kernels").glob("*.cu"))]
CLEAN = [Example(path) for path in sorted((FOLDER / "clean").glob("*.cu"))]
