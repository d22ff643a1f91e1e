#error "labkernels emulator: <cuda_pipeline.h> is not supported; this kernel runs on a GPU only"
