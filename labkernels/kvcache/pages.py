"""Who has which page of a cache: reference counts, prefixes shared by their tokens, copies on write. No tensor in sight.

    pages = PageAllocator(num_pages=1000, page_size=64)
    sequence, shared = pages.add(prompt)                     # full pages of a known beginning are shared: `shared` tokens need no computing
    slots, copies = pages.append(sequence, prompt[shared:])  # where the tokens go, all at once or in chunks; pages to copy before that
    other = pages.fork(sequence)                             # the same tokens, the same pages, until one of the two is appended to
    pages.finish(sequence)                                   # its pages are free, but found again by their tokens until they are needed

What cannot be done for want of pages raises OutOfPages and changes nothing. A page is free, or has as many references as sequences hold it.
Sharing is exact: a page is known by its tokens and by the page before it, not by a hash that might be another's. A page is shared as soon as it
was handed out to be filled: whoever appends writes its keys and values before anybody reads further.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from labkernels.errors import ArgumentError, LabKernelsError
from labkernels.kvcache.layout import SKIPPED

Key = tuple[int, tuple[int, ...]]  # a full page: the number of the prefix before it, and its tokens


class OutOfPages(LabKernelsError):
    """There are not enough free pages. Nothing has changed: finish a sequence, and ask again."""


@dataclass
class _Sequence:
    pages: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=lambda: [0])  # numbers of the prefixes that its full pages make, from the empty one on


class PageAllocator:
    """Pages 0 to num_pages - 1, of page_size tokens each. Raises ArgumentError for sizes below 1 and for sequences that there are not."""

    def __init__(self, num_pages: int, page_size: int, share_prefixes: bool = True):
        if num_pages < 1 or page_size < 1:
            raise ArgumentError(f"PageAllocator: num_pages is {num_pages}, page_size is {page_size}; both must be at least 1")
        self.num_pages, self.page_size, self.share_prefixes = num_pages, page_size, share_prefixes
        self.references = [0] * num_pages
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))  # the one that is free for longest first
        self._sequences: dict[int, _Sequence] = {}
        self._key_of: dict[int, Key] = {}  # of pages whose tokens are known; they may be free
        self._page_of: dict[Key, tuple[int, int]] = {}  # the page, and the number of the prefix that ends with it
        self._next_sequence, self._next_prefix = 0, 1

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def sequences(self) -> tuple[int, ...]:
        return tuple(self._sequences)

    def pages(self, sequence: int) -> tuple[int, ...]:
        """The pages of a sequence in order: its row of the block table."""
        return tuple(self._of(sequence).pages)

    def length(self, sequence: int) -> int:
        return len(self._of(sequence).tokens)

    def tokens(self, sequence: int) -> tuple[int, ...]:
        return tuple(self._of(sequence).tokens)

    def add(self, prompt: Sequence[int] = ()) -> tuple[int, int]:
        """A new sequence, which holds as many full pages of the prompt's beginning as are known; and how many tokens that is.

        The rest is for append(). At least one token of the prompt is left to it, so that there is something to compute the next one from.
        """
        found = _Sequence()
        while self.share_prefixes and len(found.tokens) + self.page_size < len(prompt):
            tokens = tuple(prompt[len(found.tokens) : len(found.tokens) + self.page_size])
            page, prefix = self._page_of.get((found.prefixes[-1], tokens), (None, None))
            if page is None:
                break
            self._hold(page)
            found.pages.append(page)
            found.tokens.extend(tokens)
            found.prefixes.append(prefix)
        self._next_sequence += 1
        self._sequences[self._next_sequence] = found
        return self._next_sequence, len(found.tokens)

    def append(self, sequence: int, tokens: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Room for `tokens` at the end of the sequence: their slots; and the (from, to) pages that must be copied before they are written.

        A page is copied if the sequence shares it and it is not full: copy on write. Raises OutOfPages, and then nothing has changed.
        """
        own, tokens = self._of(sequence), list(tokens)
        start, end = len(own.tokens), len(own.tokens) + len(tokens)
        self.require(self.pages_needed(sequence, len(tokens)), f"sequence {sequence}, for tokens {start} to {end - 1},")
        into_last = bool(tokens) and start % self.page_size > 0  # the last page is written to
        copied = into_last and self.references[own.pages[-1]] > 1
        copies = []
        if copied:
            old, new = own.pages[-1], self._take()
            own.pages[-1] = new
            self._release(old)
            copies.append((old, new))
        elif into_last:
            self._forget(own.pages[-1])  # it was full once, before truncate()
        while len(own.pages) * self.page_size < end:
            own.pages.append(self._take())
        own.tokens.extend(tokens)
        self._remember_full(own)
        first = start // self.page_size * self.page_size
        slots = chain.from_iterable(range(page * self.page_size, (page + 1) * self.page_size) for page in own.pages[first // self.page_size :])
        return list(islice(slots, start - first, end - first)), copies

    def pages_needed(self, sequence: int, tokens: int) -> int:
        """How many free pages append() would take for so many more tokens."""
        own = self._of(sequence)
        copied = tokens > 0 and len(own.tokens) % self.page_size > 0 and self.references[own.pages[-1]] > 1
        return -(-(len(own.tokens) + tokens) // self.page_size) - len(own.pages) + copied

    def require(self, pages: int, who: str) -> None:
        """OutOfPages unless so many pages are free."""
        if pages > self.free_pages:
            raise OutOfPages(f"{who} needs {pages} more {'page' if pages == 1 else 'pages'}, and {self.free_pages} of {self.num_pages} are free")

    def fork(self, sequence: int) -> int:
        """A new sequence of the same tokens, on the same pages."""
        own = self._of(sequence)
        for page in own.pages:
            self._hold(page)
        self._next_sequence += 1
        self._sequences[self._next_sequence] = _Sequence(list(own.pages), list(own.tokens), list(own.prefixes))
        return self._next_sequence

    def truncate(self, sequence: int, length: int) -> None:
        """Forget the tokens of a sequence from `length` on, as after drafts that were refused."""
        own = self._of(sequence)
        if not 0 <= length <= len(own.tokens):
            raise ArgumentError(f"truncate: length is {length}; sequence {sequence} has {len(own.tokens)} tokens")
        del own.tokens[length:]
        kept = -(-length // self.page_size)
        for page in reversed(own.pages[kept:]):
            self._release(page)
        del own.pages[kept:], own.prefixes[length // self.page_size + 1 :]

    def finish(self, sequence: int) -> None:
        """Give the sequence's pages back. Ends of prefixes are reused before their beginnings."""
        own = self._of(sequence)
        del self._sequences[sequence]
        for page in reversed(own.pages):
            self._release(page)

    def check(self) -> None:
        """AssertionError unless every page is accounted for: free, or referenced by exactly the sequences that hold it."""
        held = [0] * self.num_pages
        for own in self._sequences.values():
            assert len(own.pages) == -(-len(own.tokens) // self.page_size), "a sequence has as many pages as its tokens need"
            assert len(set(own.pages)) == len(own.pages), "a sequence holds a page once"
            assert len(own.prefixes) == len(own.tokens) // self.page_size + 1
            for page in own.pages:
                held[page] += 1
        assert held == self.references, "references are those of the sequences"
        assert set(self._free) == {page for page in range(self.num_pages) if held[page] == 0}, "free is what nobody holds"
        assert {page: key for key, (page, _) in self._page_of.items()} == self._key_of, "known pages are known both ways"

    def _of(self, sequence: int) -> _Sequence:
        if sequence not in self._sequences:
            raise ArgumentError(f"there is no sequence {sequence}; it was never added, or is finished")
        return self._sequences[sequence]

    def _hold(self, page: int) -> None:
        self._free.pop(page, None)
        self.references[page] += 1

    def _take(self) -> int:
        page, _ = self._free.popitem(last=False)
        self._forget(page)
        self.references[page] = 1
        return page

    def _release(self, page: int) -> None:
        self.references[page] -= 1
        if self.references[page] == 0:
            self._free[page] = None
            if page not in self._key_of:
                self._free.move_to_end(page, last=False)  # nobody can find it again: the next to be taken

    def _forget(self, page: int) -> None:
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]

    def _remember_full(self, own: _Sequence) -> None:
        """Number the prefixes that have become full, and make their last pages known, unless another page with the same tokens is."""
        while len(own.prefixes) <= len(own.tokens) // self.page_size:
            first = (len(own.prefixes) - 1) * self.page_size
            key, page = (own.prefixes[-1], tuple(own.tokens[first : first + self.page_size])), own.pages[len(own.prefixes) - 1]
            if key in self._page_of:
                own.prefixes.append(self._page_of[key][1])
                continue
            own.prefixes.append(self._next_prefix)
            self._next_prefix += 1
            if self.share_prefixes:
                self._page_of[key], self._key_of[page] = (page, own.prefixes[-1]), key


def block_table(pages: Sequence[Sequence[int]], max_pages: int | None = None) -> list[list[int]]:
    """Rows of equal length, what is missing filled with -1 (a page that there is not)."""
    width = max((len(row) for row in pages), default=0) if max_pages is None else max_pages
    if any(len(row) > width for row in pages):
        raise ArgumentError(f"block_table: max_pages is {width}, a sequence has {max(map(len, pages))} pages")
    return [[*row, *[SKIPPED] * (width - len(row))] for row in pages]
