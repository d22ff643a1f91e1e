"""The engine's cache: pages for tokens before they are known.

Notable: on a GPU a token is drawn and fed back without the CPU, several steps in a row. So its page must be there before the token is known:
`reserve` appends placeholders, `settle` says what they became. Pages with placeholders are never shared.
"""

from __future__ import annotations

from collections.abc import Sequence

from labkernels.kvcache.caches import PagedKVCache
from labkernels.kvcache.pages import PageAllocator

PLACEHOLDER = -1


class EnginePages(PageAllocator):
    """A PageAllocator whose sequences may end in tokens that are not known yet."""

    def reserve(self, sequence: int, tokens: int) -> list[int]:
        """Slots for so many tokens to come. Raises OutOfPages, and then nothing has changed."""
        slots, copies = self.append(sequence, [PLACEHOLDER] * tokens)
        assert not copies, "the engine forks no sequence"
        return slots

    def settle(self, sequence: int, tokens: Sequence[int], reserved: int) -> None:
        """The last `reserved` tokens turned out to be `tokens`, which may be fewer: pages beyond them are free again."""
        own = self._of(sequence)
        first = len(own.tokens) - reserved
        own.tokens[first : first + len(tokens)] = tokens
        self.truncate(sequence, first + len(tokens))
        self._remember_full(own)

    def truncate(self, sequence: int, length: int) -> None:
        own = self._of(sequence)
        del own.prefixes[length // self.page_size + 1 :]
        super().truncate(sequence, length)

    def forget(self) -> None:
        """No page is found by its tokens any more."""
        self._key_of.clear()
        self._page_of.clear()

    def check(self) -> None:
        for sequence in self.sequences:
            assert PLACEHOLDER not in self.tokens(sequence), "every token is known"
        super().check()

    def _remember_full(self, own) -> None:
        """As far as tokens are known."""
        known = len(own.tokens)
        while known and own.tokens[known - 1] == PLACEHOLDER:
            known -= 1
        if len(own.prefixes) <= known // self.page_size:
            hidden = own.tokens[known:]
            del own.tokens[known:]
            super()._remember_full(own)
            own.tokens += hidden


class EngineCache(PagedKVCache):
    """A PagedKVCache with EnginePages."""

    pages: EnginePages

    def __init__(self, layers: int, num_pages: int, kv_heads: int, page_size: int, head_dim: int, dtype, device, share_prefixes: bool = True):
        super().__init__(layers, num_pages, kv_heads, page_size, head_dim, dtype, device, share_prefixes)
        self.pages = EnginePages(num_pages, page_size, share_prefixes)
        self.add, self.fork, self.finish, self.truncate = self.pages.add, self.pages.fork, self.pages.finish, self.pages.truncate
        self.reserve, self.settle = self.pages.reserve, self.pages.settle
