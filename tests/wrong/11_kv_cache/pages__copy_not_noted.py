# reason: exception AssertionError
class Pages:
    """Pages of `size` tokens; conversations by name."""

    def __init__(self, count, size):
        self.size, self.free, self.references = size, list(range(count)), [0] * count
        self.tables, self.lengths, self.copies = {}, {}, []

    def take(self):
        if not self.free:
            raise MemoryError("no page is free")
        page = self.free.pop()
        self.references[page] = 1
        return page

    def let_go(self, page):
        self.references[page] -= 1
        if self.references[page] == 0:
            self.free.append(page)

    def add(self, name):
        self.tables[name], self.lengths[name] = [], 0

    def fork(self, name, other):
        ### BEGIN SOLUTION
        self.tables[other], self.lengths[other] = list(self.tables[name]), self.lengths[name]
        for page in self.tables[name]:
            self.references[page] += 1
        ### END SOLUTION

    def append(self, name):
        """Room for one more token: (page, place in it)."""
        table, place = self.tables[name], self.lengths[name] % self.size
        if place == 0:
            table.append(self.take())
        ### BEGIN SOLUTION
        elif self.references[table[-1]] > 1:
            own, shared = self.take(), table[-1]
            self.let_go(shared)
            table[-1] = own
        ### END SOLUTION
        self.lengths[name] += 1
        return table[-1], place

    def finish(self, name):
        for page in self.tables.pop(name):
            self.let_go(page)
        del self.lengths[name]
