// reason: mismatch
const int page = key / page_size;
row = (page * heads + head) * page_size + key % page_size;
