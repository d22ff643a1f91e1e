#error "labkernels emulator: <cub/cub.cuh> is not supported; this kernel runs on a GPU only"
