#error "labkernels emulator: <cooperative_groups/memcpy_async.h> is not supported; this kernel runs on a GPU only"
