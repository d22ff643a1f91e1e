"""Arguments are checked against the signature: what fits becomes the right bytes, what does not is named."""

import ctypes
import struct

import numpy as np
import pytest
import torch

from labkernels.cuda.arguments import ArgumentPacker, vector_type
from labkernels.cuda.signature import parse_signature
from labkernels.errors import ArgumentError, LabKernelsError

CPU = torch.device("cpu")


def pack(type_, value, size=None):
    parameters = parse_signature(f"void ({type_})", ["p"], [size] if size else None)
    return ArgumentPacker("f", parameters)((value,), CPU)[0]


def refused(type_, value, size=None) -> str:
    with pytest.raises(ArgumentError) as caught:
        pack(type_, value, size)
    return str(caught.value)


@pytest.mark.parametrize(
    "element, dtype",
    [
        ("float", torch.float32), ("double", torch.float64), ("__half", torch.float16), ("__nv_bfloat16", torch.bfloat16),
        ("__nv_fp8_e4m3", torch.float8_e4m3fn), ("__nv_fp8_e5m2", torch.float8_e5m2), ("int", torch.int32),
        ("long long", torch.int64), ("long", torch.int64), ("unsigned char", torch.uint8), ("signed char", torch.int8),
        ("char", torch.int8), ("bool", torch.bool), ("short", torch.int16), ("unsigned int", torch.uint32),
        ("unsigned int", torch.int32), ("unsigned long long", torch.int64), ("unsigned short", torch.uint16),
        ("float4", torch.float32), ("int2", torch.int32), ("double2", torch.float64), ("__half2", torch.float16),
        ("__nv_bfloat162", torch.bfloat16), ("uchar4", torch.uint8), ("longlong2", torch.int64),
    ],
)  # fmt: skip
def test_a_pointer_takes_the_address_of_a_tensor_of_its_dtype_and_no_other(element, dtype):
    x = torch.zeros(64, dtype=dtype)
    assert pack(f"{element}*", x) == struct.pack("<Q", x.data_ptr())
    assert pack(f"{element} const*", x[16:]) == struct.pack("<Q", x.data_ptr() + 16 * x.element_size())
    other = torch.float16 if dtype is torch.bfloat16 else torch.bfloat16
    message = refused(f"{element}*", torch.zeros(64, dtype=other))
    assert f"f: args[0], {element}* p: takes " in message and f"got a tensor of {str(other).split('.')[1]}" in message


def test_a_float64_tensor_for_float_pointer_is_named():
    packer = ArgumentPacker("scale", parse_signature("void (float const*, float*, int)", ["x", "y", "n"]))
    with pytest.raises(ArgumentError) as caught:
        packer((torch.ones(3), torch.ones(3, dtype=torch.float64), 3), CPU)
    assert str(caught.value) == "scale: args[1], float* y: takes float32, got a tensor of float64"
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, LabKernelsError)


@pytest.mark.parametrize("type_", ["void*", "void const*", "Pair*"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_pointers_whose_element_torch_does_not_know_take_any_tensor(type_, dtype):
    x = torch.ones(8, dtype=dtype)
    assert pack(type_, x) == struct.pack("<Q", x.data_ptr())


def test_none_is_a_null_pointer_and_empty_tensors_pass():
    assert pack("float*", None) == bytes(8)
    assert len(pack("float*", torch.empty(0))) == 8


def test_pointers_to_pointers_take_a_tensor_of_addresses():
    assert pack("float**", torch.zeros(2, dtype=torch.int64)) != bytes(8)
    assert "takes uint64" in refused("float**", torch.zeros(2))


@pytest.mark.parametrize("element, boundary, offset", [("float4", 16, 1), ("float2", 8, 3), ("__half2", 4, 1), ("double2", 16, 1)])
def test_a_misaligned_vector_pointer_is_refused(element, boundary, offset):
    scalar = {"f": torch.float32, "d": torch.float64, "_": torch.float16}[element[0]]
    x = torch.zeros(64, dtype=scalar)
    assert x.data_ptr() % 16 == 0
    message = refused(f"{element}*", x[offset:])
    assert f"a {element} must lie on a multiple of {boundary} bytes" in message and "args[0]" in message
    assert pack(f"{element}*", x[8:])


def test_three_component_vectors_need_only_their_scalars_alignment():
    assert vector_type("float3") == ("float", 3, 4)
    assert pack("float3*", torch.zeros(9)[1:])


def test_a_tensor_elsewhere_is_refused():
    message = refused("float*", torch.empty(3, device="meta"))
    assert "the tensor is on meta, others are on cpu" in message


def test_what_is_no_tensor_is_refused_where_a_pointer_goes():
    assert "got an int (3)" in refused("float*", 3)
    assert "torch.from_numpy" in refused("float*", np.ones(3, dtype=np.float32))
    assert "layout" in refused("float*", torch.eye(3).to_sparse())


@pytest.mark.parametrize(
    "type_, low, high",
    [
        ("char", -128, 127), ("signed char", -128, 127), ("unsigned char", 0, 255), ("short", -(2**15), 2**15 - 1),
        ("unsigned short", 0, 2**16 - 1), ("int", -(2**31), 2**31 - 1), ("unsigned int", 0, 2**32 - 1),
        ("long", -(2**63), 2**63 - 1), ("long long", -(2**63), 2**63 - 1), ("unsigned long long", 0, 2**64 - 1),
    ],
)  # fmt: skip
def test_ints_pass_within_their_range_and_not_beyond(type_, low, high):
    size = len(pack(type_, 0))
    for value in (low, high, 5):
        assert int.from_bytes(pack(type_, value), "little", signed=low < 0) == value
        assert len(pack(type_, value)) == size
    for value in (low - 1, high + 1):
        assert f"{value} is out of range for {type_}" in refused(type_, value)


def test_a_float_or_a_tensor_is_refused_where_an_int_goes():
    assert "takes an int, got a float (3.0)" in refused("int", 3.0)
    assert ".item()" in refused("int", torch.tensor(3))
    assert "takes an int, got a str" in refused("int", "3")
    assert pack("int", np.int64(3)) == pack("int", 3)
    assert "takes an int" in refused("int", np.float32(3))


@pytest.mark.parametrize(
    "type_, dtype", [("float", torch.float32), ("double", torch.float64), ("__half", torch.float16), ("__nv_bfloat16", torch.bfloat16),
                     ("__nv_fp8_e4m3", torch.float8_e4m3fn), ("__nv_fp8_e5m2", torch.float8_e5m2)]
)  # fmt: skip
def test_floats_are_rounded_as_torch_rounds_them(type_, dtype):
    for value in (0.1, -1.7, 3, float("inf"), np.float32(0.3), 1e-9):
        if dtype is torch.float8_e4m3fn and value == float("inf"):
            continue  # it has none
        expected = torch.tensor([float(value)], dtype=torch.float64).to(dtype).view(torch.uint8).numpy().tobytes()
        assert pack(type_, value) == expected, value


def test_floats_that_are_none_are_refused():
    assert ".item()" in refused("float", torch.tensor(0.5))
    assert "takes a float, got a str" in refused("float", "0.5")
    assert "1e+40 is out of range for float" in refused("float", 1e40)
    assert "70000 is out of range for __half" in refused("__half", 70000)


def test_bools():
    assert pack("bool", True) == b"\1" and pack("bool", False) == b"\0"
    assert pack("bool", np.bool_(True)) == b"\1" and pack("bool", 1) == b"\1"
    assert "takes a bool, got 2" in refused("bool", 2)
    assert "takes a bool" in refused("bool", 1.0)
    assert "takes a bool" in refused("bool", torch.tensor(True))


def test_vectors_by_value_take_tuples():
    assert pack("float4", (1, 2.5, 3, 4)) == struct.pack("<4f", 1, 2.5, 3, 4)
    assert pack("int2", [1, -2]) == struct.pack("<2i", 1, -2)
    assert "a tuple of 4 numbers" in refused("float4", (1, 2, 3))
    assert "takes an int" in refused("int2", (1, 2.5))


class Options(ctypes.Structure):
    _fields_ = [("a", ctypes.c_int), ("b", ctypes.c_double)]


def test_structs_by_value_take_their_bytes():
    data = struct.pack("<i4xd", 7, 0.5)
    assert pack("Options", Options(7, 0.5), size=16) == data
    assert pack("Options", data, size=16) == data
    record = np.zeros((), dtype=np.dtype([("a", "i4"), ("b", "f8")], align=True))
    record["a"], record["b"] = 7, 0.5
    assert pack("Options", record, size=16) == data
    assert "Options has 16 bytes, got 3" in refused("Options", b"abc", size=16)
    assert "by value" in refused("Options", 3, size=16)
    assert "by value" in refused("Options", torch.zeros(2), size=16)


def test_a_wrong_count_shows_the_parameters():
    packer = ArgumentPacker("scale", parse_signature("void (float*, int)", ["x", "n"]))
    with pytest.raises(ArgumentError, match=r"^scale takes 2 arguments, got 3: scale\(float\* x, int n\)$"):
        packer((torch.ones(1), 1, 2), CPU)
    with pytest.raises(ArgumentError, match=r"takes 2 arguments, got 0"):
        packer((), CPU)
