// reason: sanitizer out_of_bounds
const int page = table[key];
row = (page * heads + head) * page_size + key % page_size;
