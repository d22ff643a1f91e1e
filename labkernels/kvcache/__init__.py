"""The cache of keys and values: layouts, append kernels, decode attention, pages."""
