// reason: sanitizer out_of_bounds
in_a = {lane / 2 + e / 2 % 2 * 8, lane % 2 * 2 + e % 2 + e / 4 * 8};    // rows up to 23
in_b = {lane % 4 * 2 + e % 2 + e / 2 * 8, lane / 4};
