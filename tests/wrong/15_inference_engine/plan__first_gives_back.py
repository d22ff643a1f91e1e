# reason: exception AssertionError
for request in list(self.running):
    while request in self.running and self.needs(request) > self.free:
        first = self.running.pop(0)
        self.give_back(first)
        self.waiting.insert(0, first)
    if request in self.running:
        self.take(request)
        chosen.append(request)
while self.waiting and len(self.running) < self.most and self.needs(self.waiting[0]) <= self.free:
    request = self.waiting.pop(0)
    self.take(request)
    self.running.append(request)
    chosen.append(request)
