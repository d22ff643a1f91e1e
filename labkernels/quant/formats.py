"""How quantised weights lie in memory: `QuantizedWeight`, the packing of 4-bit numbers, and what each scheme's numbers mean.

A weight is (n, k), as a linear layer's: n outputs, k inputs. Along k it is padded with numbers that no activation meets: kernels take x
to be zero from k on, and never read it there.

    scheme    packed                           scales                              w[row, col]
    int8      int8 (n, k16)                    float32 (n,)                        scale * q
    fp8       float8_e4m3fn (n, k16)           float32 (n,)                        scale * q
    int4      int32 (n, kg / 8)                bfloat16 (groups, n, 2)             scale * (q - zero)        q, zero: 0 .. 15
    nf4       int32 (n, kg / 8)                bfloat16 (groups, n)                scale * codebook[q]       NF4's 16 numbers
    codebook  int32 (n, kg / 8)                bfloat16 (groups, n)                scale * codebook[q]       any 16 numbers

k16 is k rounded up to a multiple of 16, kg to one of the group size, 32, 64 or 128: rows begin on multiples of 16 bytes. groups is kg /
group_size; int4's scale and zero are neighbours, one word of 32 bits, and those of neighbouring rows too: a tile of rows reads whole
sectors for each group. Zeros are whole numbers, so that q - zero is exact in any 16-bit dtype.

Eight 4-bit numbers of a row share a word, in an order in which one shift and one lop3 give two neighbours, each in its half word:

    bits   0-3  4-7  8-11 12-15 16-19 20-23 24-27 28-31
    k      0    2    4    6     1     3     5     7           (word >> 4 * i) & 0x000f000f  is  k = 2i (low half), k = 2i + 1 (high)

Or-ing 0x4300 into each half makes them bfloat16s 128 + q, 0x6400 halves 1024 + q.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from labkernels.errors import ArgumentError

GROUP_SIZES = (32, 64, 128)
FOUR_BIT = ("int4", "nf4", "codebook")
EIGHT_BIT = ("int8", "fp8")
SCHEMES = (*FOUR_BIT, *EIGHT_BIT)
PACK_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which k of eight the nibbles of a word hold, from the lowest
FP8_MAX = 448.0

# The quantiles of a normal distribution, scaled to -1 .. 1 (Dettmers et al., "QLoRA", 2023, appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def padded_columns(k: int, scheme: str, group_size: int | None) -> int:
    """Columns of a row as it is stored: k rounded up to whole groups, or to 16 where there are none."""
    unit = group_size if scheme in FOUR_BIT else 16
    return -(-k // unit) * unit


def pack4(numbers: torch.Tensor) -> torch.Tensor:
    """int32 (n, k / 8) from numbers 0 .. 15 (n, k) of any integer dtype. ArgumentError unless k is a multiple of 8."""
    if numbers.dim() != 2 or numbers.shape[1] % 8:
        raise ArgumentError(f"pack4: numbers has shape {tuple(numbers.shape)}; it must be (n, k) with k a multiple of 8")
    eights = numbers.to(torch.int32).view(numbers.shape[0], -1, 8)
    words = torch.zeros(eights.shape[:2], dtype=torch.int32, device=numbers.device)
    for nibble, which in enumerate(PACK_ORDER):
        words |= (eights[:, :, which] & 15) << 4 * nibble
    return words


def unpack4(words: torch.Tensor) -> torch.Tensor:
    """The numbers 0 .. 15, uint8 (n, k), of int32 words (n, k / 8)."""
    eights = torch.empty((*words.shape, 8), dtype=torch.uint8, device=words.device)
    for nibble, which in enumerate(PACK_ORDER):
        eights[..., which] = (words >> 4 * nibble & 15).to(torch.uint8)
    return eights.view(words.shape[0], -1)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A quantised weight (n, k) of a linear layer. See the module for what the tensors hold; `scales` has the zeros of int4 in it.

    Raises ArgumentError that names the tensor whose shape, dtype or device does not fit.
    """

    scheme: str
    shape: tuple[int, int]  # (n, k), without padding
    packed: torch.Tensor
    scales: torch.Tensor
    group_size: int | None = None  # of the 4-bit schemes
    codebook: torch.Tensor | None = None  # float32 (16,), of nf4 and codebook
    any_variant: bool = False  # for checks and benchmarks: a kernel that can take it does, even where another was measured to be faster

    def __post_init__(self):
        problem = format_problem(self.scheme, self.shape, self.packed, self.scales, self.group_size, self.codebook)
        if problem is not None:
            raise ArgumentError(f"QuantizedWeight: {problem}")

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def groups(self) -> int:
        """How many scales a row has."""
        return self.scales.shape[0] if self.scheme in FOUR_BIT else 1

    @property
    def bytes(self) -> int:
        """What a kernel must read: numbers, scales, codebook."""
        tensors = (self.packed, self.scales, self.codebook)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / max(1, self.shape[0] * self.shape[1])

    @property
    def zeros(self) -> torch.Tensor | None:
        """int4's zeros, bfloat16 (groups, n), a view; else None."""
        return self.scales[..., 1] if self.scheme == "int4" else None

    def numbers(self) -> torch.Tensor:
        """The stored numbers (n, k): uint8 of 4 bits, int8, or float8_e4m3fn."""
        return (unpack4(self.packed) if self.scheme in FOUR_BIT else self.packed)[:, : self.shape[1]]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight (n, k) as plain numbers, computed in float32 (float64 if asked for) and rounded once to `dtype`."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        numbers, scales = self.numbers(), self.scales.to(wide)
        if self.scheme in EIGHT_BIT:
            return (numbers.to(wide) * scales[:, None]).to(dtype)
        k = self.shape[1]
        by_column = lambda each: each.t().repeat_interleave(self.group_size, dim=1)[:, :k]  # noqa: E731  (groups, n) -> (n, k)
        if self.scheme == "int4":
            return ((numbers.to(wide) - by_column(scales[..., 1])) * by_column(scales[..., 0])).to(dtype)
        return (self.codebook.to(wide)[numbers.int()] * by_column(scales)).to(dtype)

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight on another device."""
        codebook = None if self.codebook is None else self.codebook.to(device)
        return replace(self, packed=self.packed.to(device), scales=self.scales.to(device), codebook=codebook)

    def state_dict(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Its tensors by name: packed, scales and, where there is one, codebook. Scheme, shape and group size are the caller's to keep."""
        tensors = {"packed": self.packed, "scales": self.scales, "codebook": self.codebook}
        return {prefix + name: tensor for name, tensor in tensors.items() if tensor is not None}

    def __repr__(self) -> str:
        group = f", group {self.group_size}" if self.group_size else ""
        return f"<{self.scheme} {self.shape}{group}>"


def format_problem(scheme, shape, packed, scales, group_size=None, codebook=None) -> str | None:
    """What is wrong with the parts of a QuantizedWeight, or None."""
    if scheme not in SCHEMES:
        return f"scheme is {scheme!r}; it must be one of {', '.join(SCHEMES)}"
    if len(shape) != 2 or min(shape) < 0:
        return f"shape is {tuple(shape)}; it must be (n, k)"
    four_bit = scheme in FOUR_BIT
    if four_bit and group_size not in GROUP_SIZES:
        return f"group_size is {group_size}; for {scheme} it must be one of {', '.join(map(str, GROUP_SIZES))}"
    if not four_bit and group_size is not None:
        return f"group_size is {group_size}; {scheme} has one scale a row and takes None"
    (n, k), columns = shape, padded_columns(shape[1], scheme, group_size)
    groups = columns // group_size if four_bit else 1
    expected = {
        "int8": ((n, columns), torch.int8, (n,), torch.float32),
        "fp8": ((n, columns), torch.float8_e4m3fn, (n,), torch.float32),
        "int4": ((n, columns // 8), torch.int32, (groups, n, 2), torch.bfloat16),
    }.get(scheme, ((n, columns // 8), torch.int32, (groups, n), torch.bfloat16))
    found = {"packed": (packed, *expected[:2]), "scales": (scales, *expected[2:])}
    if scheme in ("nf4", "codebook"):
        if codebook is None:
            return f"{scheme} needs a codebook of 16 numbers"
        found["codebook"] = (codebook, (16,), torch.float32)
    elif codebook is not None:
        return f"codebook is given; {scheme} has none"
    for name, (tensor, wanted, dtype) in found.items():
        if tuple(tensor.shape) != wanted:
            return f"{name} has shape {tuple(tensor.shape)}; for {scheme} of shape ({n}, {k}) it must be {wanted}"
        if tensor.dtype != dtype:
            return f"{name} is {tensor.dtype}; for {scheme} it must be {dtype}"
        if tensor.device != packed.device:
            return f"{name} is on {tensor.device}, packed is on {packed.device}; all must be on one device"
        if not tensor.is_contiguous():
            return f"{name} has strides {tensor.stride()}; it must be contiguous"
    return None
