// reason: mismatch
in_a = {lane / 4 + e / 2 % 2 * 8, lane % 4 + e % 2 + e / 4 * 8};
in_b = {lane % 4 * 2 + e % 2 + e / 2 * 8, lane / 4};
