"""Python values turned into the bytes that a kernel's parameters take.

Each value is checked against its parameter; whatever cannot work raises `ArgumentError`, before anything is launched.

    C++ parameter                          Python value
    float*, __half*, int* ...              a tensor of the matching dtype, or None for a null pointer
    float4*, __half2*, int2* ...           a tensor of the scalar's dtype whose data lie on a vector's boundary
    void*, T* for a struct T               any tensor
    int, unsigned char, long long ...      an int in range
    float, double, __half ...              a float or an int
    bool                                   a bool
    float4, int2 ...                       a tuple of that many numbers
    a struct                               bytes, or anything with the buffer protocol (ctypes, NumPy), of the struct's size
"""

from __future__ import annotations

import numbers
import operator
import re
import struct
from collections.abc import Callable, Sequence

import torch

from labkernels.cuda.signature import Parameter
from labkernels.errors import ArgumentError

# element type -> dtypes that it may stand for; the first is the one that messages ask for
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "float": (torch.float32,),
    "double": (torch.float64,),
    "__half": (torch.float16,),
    "__nv_bfloat16": (torch.bfloat16,),
    "__nv_fp8_e4m3": (torch.float8_e4m3fn,),
    "__nv_fp8_e5m2": (torch.float8_e5m2,),
    "bool": (torch.bool,),
    "char": (torch.int8,),
    "signed char": (torch.int8,),
    "unsigned char": (torch.uint8,),
    "short": (torch.int16,),
    "unsigned short": (torch.uint16, torch.int16),
    "int": (torch.int32,),
    "unsigned int": (torch.uint32, torch.int32),
    "long": (torch.int64,),
    "long long": (torch.int64,),
    "unsigned long": (torch.uint64, torch.int64),
    "unsigned long long": (torch.uint64, torch.int64),
}

_FORMATS = {
    "float": "f", "double": "d", "__half": "e", "char": "b", "signed char": "b", "unsigned char": "B", "short": "h",
    "unsigned short": "H", "int": "i", "unsigned int": "I", "long": "q", "long long": "q", "unsigned long": "Q",
    "unsigned long long": "Q",
}  # fmt: skip
_ROUNDED_BY_TORCH = ("__nv_bfloat16", "__nv_fp8_e4m3", "__nv_fp8_e5m2")  # scalars that torch rounds, having no struct format

_VECTOR_SCALARS = {
    "char": "signed char", "uchar": "unsigned char", "short": "short", "ushort": "unsigned short", "int": "int",
    "uint": "unsigned int", "long": "long", "ulong": "unsigned long", "longlong": "long long",
    "ulonglong": "unsigned long long", "float": "float", "double": "double",
}  # fmt: skip


class ArgumentPacker:
    """Turns the arguments of one kernel into bytes. What can be known beforehand is found out once, at construction."""

    def __init__(self, kernel: str, parameters: tuple[Parameter, ...]):
        self.kernel = kernel
        self.parameters = parameters
        self._packers = tuple(packer(p) for p in parameters)

    def __call__(self, args: Sequence, device: torch.device) -> list[bytes]:
        """The bytes of all arguments for a launch on `device`. Raises ArgumentError that names the culprit."""
        if len(args) != len(self._packers):
            wanted = ", ".join(str(p) for p in self.parameters)
            takes = "1 argument" if len(self._packers) == 1 else f"{len(self._packers)} arguments"
            raise ArgumentError(f"{self.kernel} takes {takes}, got {len(args)}: {self.kernel}({wanted})")
        values = []
        try:
            for pack, value in zip(self._packers, args):
                values.append(pack(value, device))
        except ArgumentError as error:
            position = len(values)
            raise ArgumentError(f"{self.kernel}: args[{position}], {self.parameters[position]}: {error}") from None
        return values


def packer(parameter: Parameter) -> Callable[[object, torch.device | None], bytes]:
    """A function that gives the bytes for one value of `parameter`.

    It takes the value and the device that a tensor must be on (None: any), and raises ArgumentError.
    """
    element = parameter.element
    if parameter.is_pointer:
        return _pointer_packer(element)
    if element == "bool":
        return _pack_bool
    if element in ("float", "double", "__half") or element in _ROUNDED_BY_TORCH:
        return _float_packer(element)
    if element in _FORMATS:
        return _integer_packer(element)
    if vector := vector_type(element):
        return _vector_packer(*vector)
    return _struct_packer(element, parameter.size)


def vector_type(element: str) -> tuple[str, int, int] | None:
    """For one of CUDA's vector types the scalar type, how many, and the alignment in bytes: `float4` gives `("float", 4, 16)`."""
    if element in ("__half2", "__nv_bfloat162"):
        return element[:-1], 2, 4
    match = re.fullmatch(r"([a-z]+)([1-4])", element)
    if not match or match.group(1) not in _VECTOR_SCALARS:
        return None
    scalar, count = _VECTOR_SCALARS[match.group(1)], int(match.group(2))
    size = struct.calcsize("=" + _FORMATS[scalar])
    return scalar, count, size if count == 3 else min(16, size * count)


def _pointer_packer(element: str):
    vector = vector_type(element)
    dtypes = DTYPES.get(vector[0] if vector else element)
    alignment = vector[2] if vector else 1
    if element.endswith("*"):  # a pointer to pointers: a tensor of addresses
        dtypes = DTYPES["unsigned long"]
    pack = struct.Struct("<Q").pack

    def pack_pointer(value, device):
        if value is None:
            return bytes(8)
        if not isinstance(value, torch.Tensor):
            hint = "; torch.from_numpy makes it a tensor" if type(value).__module__ == "numpy" else ""
            raise ArgumentError(f"a tensor (or None) goes here, got {_describe(value)}{hint}")
        if device is not None and value.device != device:
            raise ArgumentError(f"the tensor is on {value.device}, others are on {device}; all must be on one device")
        if value.layout is not torch.strided:
            raise ArgumentError(f"a kernel sees plain memory, got a tensor with layout {value.layout}")
        if dtypes is not None and value.dtype not in dtypes:
            raise ArgumentError(f"takes {_name(dtypes[0])}, got a tensor of {_name(value.dtype)}")
        address = value.data_ptr()
        if address % alignment:
            raise ArgumentError(
                f"a {element} must lie on a multiple of {alignment} bytes; this tensor's data begin {address % alignment} bytes "
                f"past one (a slice? .clone() moves it)"
            )
        return pack(address)

    return pack_pointer


def _pack_bool(value, device) -> bytes:
    if isinstance(value, torch.Tensor) or not (hasattr(value, "__index__") or type(value).__name__ in ("bool", "bool_")):
        raise ArgumentError(f"takes a bool, got {_describe(value)}")
    if value not in (0, 1):
        raise ArgumentError(f"takes a bool, got {value!r}")
    return b"\1" if value else b"\0"


def _integer_packer(element: str):
    pack = struct.Struct("<" + _FORMATS[element]).pack

    def pack_integer(value, device):
        if isinstance(value, torch.Tensor):
            raise ArgumentError(f"takes a Python int, got {_describe(value)}; .item() gives its value")
        try:
            return pack(operator.index(value))
        except TypeError:
            raise ArgumentError(f"takes an int, got {_describe(value)}") from None
        except struct.error:
            raise ArgumentError(f"{value} is out of range for {element}") from None

    return pack_integer


def _float_packer(element: str):
    dtype = DTYPES[element][0]
    pack = struct.Struct("<" + _FORMATS[element]).pack if element in _FORMATS else None

    def pack_float(value, device):
        if isinstance(value, torch.Tensor):
            raise ArgumentError(f"takes a Python float, got {_describe(value)}; .item() gives its value")
        if not isinstance(value, numbers.Real):
            raise ArgumentError(f"takes a float, got {_describe(value)}")
        if pack is None:
            return torch.tensor([float(value)], dtype=torch.float64).to(dtype).view(torch.uint8).numpy().tobytes()
        try:
            return pack(value)
        except (OverflowError, struct.error):
            raise ArgumentError(f"{value} is out of range for {element}") from None

    return pack_float


def _vector_packer(scalar: str, count: int, alignment: int):
    pack_scalar = packer(Parameter(None, scalar, False, False, scalar))

    def pack_vector(value, device):
        if not isinstance(value, tuple | list) or len(value) != count:
            raise ArgumentError(f"takes a tuple of {count} numbers, got {_describe(value)}")
        return b"".join(pack_scalar(v, device) for v in value)

    return pack_vector


def _struct_packer(element: str, size: int | None):
    def pack_struct(value, device):
        if isinstance(value, torch.Tensor):
            raise ArgumentError(f"takes {element} by value, not a tensor; pass its bytes")
        tensor = getattr(value, "tensor", None)
        if tensor is not None and device is not None and tensor.device != device:
            raise ArgumentError(f"the tensor map is of a tensor on {tensor.device}, others are on {device}; all must be on one device")
        try:
            data = bytes(memoryview(value))
        except TypeError:
            raise ArgumentError(f"takes {element} by value: bytes or a ctypes.Structure, got {_describe(value)}") from None
        if size is not None and len(data) != size:
            raise ArgumentError(f"{element} has {size} bytes, got {len(data)}")
        return data

    return pack_struct


def _describe(value) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {_name(value.dtype)} with shape {tuple(value.shape)}"
    kind = type(value).__name__
    article = "an" if kind[0] in "aeiouAEIOU" else "a"
    return f"{article} {kind} ({value!r})" if isinstance(value, int | float | str | bool) else f"{article} {kind}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
