# reason: exception AssertionError
for request in self.running:
    if self.needs(request) <= self.free:
        self.take(request)
        chosen.append(request)
while self.waiting and len(self.running) < self.most and self.needs(self.waiting[0]) <= self.free:
    request = self.waiting.pop(0)
    self.take(request)
    self.running.append(request)
    chosen.append(request)
