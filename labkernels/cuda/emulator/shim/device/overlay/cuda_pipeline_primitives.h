#error "labkernels emulator: <cuda_pipeline_primitives.h> is not supported; this kernel runs on a GPU only"
