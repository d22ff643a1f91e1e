# reason: mismatch
sectors_read = sectors_written = 4
