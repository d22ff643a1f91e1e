// reason: mismatch
return col ^ (row % 8);      // a column meets 8 banks only
