#error "labkernels emulator: <curand_kernel.h> is not supported; this kernel runs on a GPU only"
