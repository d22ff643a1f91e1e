# reason: mismatch
token_bytes = 32 * 32 * 128 * 2 * 2
cache_gb = 32 * 8192 * token_bytes / 1e9
