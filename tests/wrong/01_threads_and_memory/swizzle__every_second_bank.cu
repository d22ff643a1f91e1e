// reason: mismatch
return (col + 2 * row) % 32;      // a column meets 16 banks only
