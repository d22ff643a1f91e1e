"""Numbers to try device code on, and what is between two neighbours."""

import math
import random
from fractions import Fraction

import numpy
import torch

N = 3000


def rows(count: int, device: str, n: int = N, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((count, n), math.nan if dtype.is_floating_point else -77, dtype=dtype, device=device)


def spread(n: int, seed: int, exponents: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 2.0 ** torch.randint(*exponents, (n,), generator=generator)
    return (torch.randn(n, generator=generator, dtype=torch.float64) * scale).to(dtype)


def integers(n: int, seed: int, bits: int) -> torch.Tensor:
    """Integers of every size, and the extreme ones."""
    generator = random.Random(seed)
    values = [generator.getrandbits(bits) - 2 ** (bits - 1) >> generator.randrange(bits) for _ in range(n - 5)]
    return torch.tensor([0, -1, 1, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, *values], dtype=torch.int64)


def signed(value: int, bits: int = 64) -> int:
    value &= 2**bits - 1
    return value - 2**bits if value >= 2 ** (bits - 1) else value


def between(value: Fraction, nearest: float, zero: float, up: float, down: float, dtype: type) -> None:
    """The four roundings of one exact value: neighbours around it, the nearer one, the one towards zero."""
    assert Fraction(down) <= value <= Fraction(up)
    if Fraction(down) != value:
        assert float(numpy.nextafter(dtype(down), dtype(math.inf))) == up
    assert nearest in (down, up) and abs(Fraction(nearest) - value) == min(value - Fraction(down), Fraction(up) - value)
    assert zero == (down if value > 0 else up)
