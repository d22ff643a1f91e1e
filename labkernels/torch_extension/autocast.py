"""Under torch.autocast attention and matmul compute in the autocast dtype, as PyTorch's own do."""

from __future__ import annotations

import torch

from labkernels.torch_extension.operators import LIBRARY


def _cast(value, device_type: str, dtype: torch.dtype):
    """Tensors that autocast takes care of, in its dtype: floating ones on its device, but for float64."""
    if not isinstance(value, torch.Tensor) or value.device.type != device_type:
        return value
    return value.to(dtype) if value.is_floating_point() and value.dtype != torch.float64 else value


def _register(name: str, device_type: str) -> None:
    op, key = getattr(torch.ops.labkernels, name).default, "Autocast" + {"cpu": "CPU", "cuda": "CUDA"}[device_type]
    own = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast_and_call(keys, *args, **kwargs):
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(own):
            return op(*(_cast(value, device_type, dtype) for value in args), **{n: _cast(v, device_type, dtype) for n, v in kwargs.items()})

    LIBRARY.impl(name, cast_and_call, key, with_keyset=True)


for _name in ("attention", "matmul"):
    for _device in ("cpu", "cuda"):
        _register(_name, _device)
