// reason: mismatch
const int page = table[key / page_size];
row = page * page_size + key % page_size;
