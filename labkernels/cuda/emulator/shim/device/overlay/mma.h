#error "labkernels emulator: <mma.h> is not supported; this kernel runs on a GPU only"
