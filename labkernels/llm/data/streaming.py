"""Text from tokens as they come, never a broken character.

A character of UTF-8 has up to four bytes, and a token may end inside one. So text is held back until its last character is whole. The
same trick serves tokenizers that are not byte-level, whose tokens' text depends on the token before (SentencePiece's spaces): decode a
short window that begins before the new token, and give what it has more than the window without it.
"""

from __future__ import annotations

import tokenizers

_BROKEN = "\ufffd"  # what decoding puts in the place of an incomplete character


class TextStream:
    """`push(id)` returns the text that is certain by now, possibly empty; `finish()` what was held back.

    All that is returned, joined, is `decode` of all ids. (But for bytes that are no UTF-8 in SentencePiece's vocabularies: for one that is
    wrong their decoder gives up a whole run of bytes, later than a stream can know.)
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []  # the window: ids whose text is out, but needed to decode the next, then ids that are held back
        self._shown = 0  # how many of the window's ids have their text out

    def push(self, id: int) -> str:
        self._ids.append(int(id))
        before, after = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        if len(after) <= len(before) or after.endswith(_BROKEN):
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return after[len(before) :]

    def finish(self) -> str:
        """What is left: at most an incomplete character, shown as U+FFFD. The stream begins anew after it."""
        before, after = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        self._ids, self._shown = [], 0
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip) if ids else ""
