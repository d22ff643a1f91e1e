# reason: mismatch
scale_requests, scale4_requests, scale4_sectors = 64, 16, 4
