# reason: exception AssertionError
while self.waiting and len(self.running) < self.most and self.needs(self.waiting[0]) <= self.free:
    self.running.append(self.waiting.pop(0))
    self.take(self.running[-1])
    chosen.append(self.running[-1])
for request in list(self.running):
    while request in self.running and self.needs(request) > self.free:
        last = self.running.pop()
        self.give_back(last)
        self.waiting.insert(0, last)
    if request in self.running and request not in chosen:
        self.take(request)
        chosen.append(request)
