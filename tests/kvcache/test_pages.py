"""Pages: over random schedules none is lost, none leaks, and every sequence reads what was written for it; no pages left is said and changes nothing."""

import copy
import random

import pytest

from labkernels.errors import ArgumentError
from labkernels.kvcache.pages import OutOfPages, PageAllocator, block_table


class Memory:
    """A cache whose slots hold, in place of keys, all tokens up to theirs: what a key depends on."""

    def __init__(self, pages: PageAllocator):
        self.pages, self.slots = pages, {}

    def append(self, sequence, tokens):
        before = self.pages.tokens(sequence)
        slots, copies = self.pages.append(sequence, tokens)
        for old, new in copies:
            for offset in range(self.pages.page_size):
                self.slots[new * self.pages.page_size + offset] = self.slots.get(old * self.pages.page_size + offset)
        for i, slot in enumerate(slots):
            self.slots[slot] = (*before, *tokens[: i + 1])

    def reads_right(self, sequence):
        size, tokens, pages = self.pages.page_size, self.pages.tokens(sequence), self.pages.pages(sequence)
        return all(self.slots[pages[p // size] * size + p % size] == tokens[: p + 1] for p in range(len(tokens)))


def run_schedule(seed: int, allocator=PageAllocator, steps: int = 150) -> dict:
    """Adds, appends, forks, truncations and ends at random, few tokens and pages so that they collide; everything is checked after each step."""
    chance = random.Random(seed)
    pages = allocator(chance.randint(3, 20), chance.randint(1, 5), share_prefixes=chance.random() < 0.9)
    memory, seen = Memory(pages), {"shared": 0, "out": 0, "copied": 0}
    for _ in range(steps):
        living = pages.sequences
        what = chance.choice(["add", "append", "append", "append", "fork", "truncate", "finish"])
        before = copy.deepcopy(vars(pages))
        try:
            if what == "add" or not living:
                prompt = [chance.randint(0, 1) for _ in range(chance.randint(0, 12))]
                sequence, shared = pages.add(prompt)
                seen["shared"] += shared > 0
                before = copy.deepcopy(vars(pages))
                memory.append(sequence, prompt[shared:])
            elif what == "append":
                memory.append(chance.choice(living), [chance.randint(0, 1) for _ in range(chance.randint(0, 7))])
            elif what == "fork":
                pages.fork(chance.choice(living))
                seen["copied"] += 1
            elif what == "truncate":
                sequence = chance.choice(living)
                pages.truncate(sequence, chance.randint(0, pages.length(sequence)))
            else:
                pages.finish(chance.choice(living))
        except OutOfPages:
            seen["out"] += 1
            assert vars(pages) == before, "nothing has changed"
        pages.check()
        assert all(memory.reads_right(sequence) for sequence in pages.sequences)
    for sequence in pages.sequences:
        pages.finish(sequence)
    pages.check()
    assert pages.free_pages == pages.num_pages
    return seen


def test_random_schedules_lose_nothing_and_leak_nothing():
    total = [run_schedule(seed) for seed in range(60)]
    assert all(sum(seen[what] for seen in total) > 50 for what in ("shared", "out", "copied")), "the schedules try everything"


class NoCopyOnWrite(PageAllocator):
    def append(self, sequence, tokens):
        references, self.references = self.references, [min(1, count) for count in self.references]
        slots, copies = super().append(sequence, tokens)
        self.references = [max(now, then) for now, then in zip(self.references, references)]
        return slots, copies


class KeepsWhatIsRewritten(PageAllocator):
    def _forget(self, page):
        if self.references[page] == 0:
            super()._forget(page)


class Leaks(PageAllocator):
    def finish(self, sequence):
        if len(self.pages(sequence)) > 2:
            self._sequences[sequence].pages.pop()
        super().finish(sequence)


@pytest.mark.parametrize("wrong", [NoCopyOnWrite, KeepsWhatIsRewritten, Leaks])
def test_mistakes_are_found(wrong):
    with pytest.raises((AssertionError, KeyError)):
        for seed in range(60):
            run_schedule(seed, wrong)


def test_full_pages_of_a_known_prefix_are_shared_while_held_and_after():
    pages = PageAllocator(10, 4)
    first, shared = pages.add(range(10))
    assert shared == 0
    pages.append(first, range(10))
    second, shared = pages.add([*range(8), 99])
    assert shared == 8 and pages.pages(second) == pages.pages(first)[:2] and pages.free_pages == 7
    pages.finish(first)
    pages.finish(second)
    assert pages.free_pages == 10
    third, shared = pages.add(range(8))
    assert shared == 4, "one token at least is left to compute"
    assert pages.add([7, *range(1, 10)])[1] == 0, "the same tokens behind another beginning are not the same"


def test_forks_share_until_one_writes():
    pages = PageAllocator(4, 4)
    first, _ = pages.add()
    pages.append(first, [1, 2, 3, 4, 5])
    second = pages.fork(first)
    assert pages.free_pages == 2
    slots, copies = pages.append(second, [6])
    assert copies == [(pages.pages(first)[1], pages.pages(second)[1])] and slots == [pages.pages(second)[1] * 4 + 1]
    assert pages.append(first, [7])[1] == [], "the other one is alone by now"
    assert pages.pages(first)[0] == pages.pages(second)[0]


def test_out_of_pages_says_so():
    pages = PageAllocator(3, 4)
    sequence, _ = pages.add()
    pages.append(sequence, range(9))
    with pytest.raises(OutOfPages, match=r"sequence 1, for tokens 9 to 13, needs 1 more page, and 0 of 3 are free"):
        pages.append(sequence, range(5))
    assert pages.length(sequence) == 9
    pages.append(sequence, range(3))


def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match="page_size is 0"):
        PageAllocator(3, 0)
    pages = PageAllocator(3, 4)
    with pytest.raises(ArgumentError, match="no sequence 7"):
        pages.append(7, [1])
    sequence, _ = pages.add()
    with pytest.raises(ArgumentError, match="length is 1; sequence 1 has 0 tokens"):
        pages.truncate(sequence, 1)
    with pytest.raises(ArgumentError, match="max_pages is 1, a sequence has 2 pages"):
        block_table([[1, 2], [3]], 1)
    assert block_table([[1, 2], [3], []]) == [[1, 2], [3, -1], [-1, -1]]
