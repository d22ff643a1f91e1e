# reason: mismatch
stride_4, stride_32, backwards, one_late, one_for_all = 16, 32, 4, 5, 32     # lanes at one address share one sector
