"""Conversions to pairs and fours of narrow numbers, bit by bit against PyTorch's."""

import numpy
import pytest
import torch

from labkernels.cuda import Kernel

NAMES = ["pack_bf16x2", "pack_bf16x2_relu", "pack_f16x2", "pack_f16x2_relu", "pack_e4m3x4", "pack_e5m2x4", "pack_s8x4", "to_tf32", "unpack"]
KERNEL = Kernel(
    r"""
    #include "pack.cuh"
    // x (n, 4); y (9, n), one row an instruction; the last, (2 words each) halves out of fp8 bytes 0 .. 255 in z.
    extern "C" __global__ void pack(const float* x, unsigned* y, unsigned* z, int n) {
        const int i = blockIdx.x * blockDim.x + threadIdx.x;
        const float* v = x + 4 * i;
        y[0 * n + i] = pack_bf16x2(v[0], v[1]);
        y[1 * n + i] = pack_bf16x2_relu(v[0], v[1]);
        y[2 * n + i] = pack_f16x2(v[0], v[1]);
        y[3 * n + i] = pack_f16x2_relu(v[0], v[1]);
        y[6 * n + i] = pack_s8x4((int)v[0], (int)v[1], (int)v[2], (int)v[3]);
        y[7 * n + i] = to_tf32(v[0]);
    #if __CUDA_ARCH__ >= 890
        y[4 * n + i] = pack_e4m3x4(v[0], v[1], v[2], v[3]);
        y[5 * n + i] = pack_e5m2x4(v[0], v[1], v[2], v[3]);
        if (i < 256) {
            z[i] = unpack_e4m3x2(i | (255 - i) << 8);
            z[256 + i] = unpack_e5m2x2(i | (255 - i) << 8);
        }
    #endif
    }""",
    "pack",
)
N = 2048


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    scales = 2.0 ** torch.randint(-20, 18, (N, 4), generator=generator)
    x = torch.randn(N, 4, generator=generator) * scales
    x[: N // 8] = torch.randint(-200, 200, (N // 8, 4), generator=generator) + 0.5 * torch.randint(0, 2, (N // 8, 4), generator=generator)
    x[N // 8 : N // 4] = x[N // 8 : N // 4].bfloat16() * (1 + 2.0**-8)  # halfway between two bfloat16s
    special = [0.0, -0.0, float("inf"), -float("inf"), 3e38, -3e38, 448.0, 464.0, 465.0]
    special += [57344.0, 61440.0, 65519.0, 65520.0, 1e-45, 2.0**-9, 2.0**-10]
    x[-16:] = torch.tensor(special)[:, None]
    return x


@pytest.fixture
def results(x, device) -> tuple[numpy.ndarray, numpy.ndarray]:
    y, z = (torch.zeros(s, dtype=torch.int32).view(torch.uint32).to(device) for s in ((8, N), (512,)))
    KERNEL(N // 128, 128, (x.to(device), y, z, N))
    return tuple(t.cpu().view(torch.int32).numpy().view(numpy.uint32) for t in (y, z))


def bytes_of(x: torch.Tensor) -> numpy.ndarray:
    return x.contiguous().view(torch.uint8).numpy()


def test_pairs_are_rounded_to_nearest_even(x, results):
    for row, dtype in ((0, torch.bfloat16), (2, torch.float16)):
        got = results[0][row].view(numpy.uint8).reshape(N, 4)
        assert numpy.array_equal(got, bytes_of(x[:, :2].to(dtype))), NAMES[row]
        positive = torch.from_numpy(results[0][row + 1].view(numpy.uint8).copy()).view(dtype).view(N, 2)
        assert torch.equal(positive, x[:, :2].to(dtype).clamp(min=0)), NAMES[row + 1]  # the zero's sign is nobody's business


def test_fp8_saturates(x, results):
    for row, dtype in ((4, torch.float8_e4m3fn), (5, torch.float8_e5m2)):
        most = torch.finfo(dtype).max
        want = bytes_of(x.clamp(-most, most).to(dtype))
        got = results[0][row].view(numpy.uint8).reshape(N, 4)
        assert numpy.array_equal(got, want), (NAMES[row], numpy.argwhere(got != want)[:3])
        assert (numpy.abs(x.numpy()) > most).sum() > 20


def test_bytes_are_clamped(x, results):
    finite = (x.abs() < 2**31).all(1).numpy()
    want = numpy.clip(x.double().numpy()[finite].astype(numpy.int64), -128, 127).astype(numpy.int8)
    assert numpy.array_equal(results[0][6].view(numpy.int8).reshape(N, 4)[finite], want)


def test_tf32_rounds_ties_away_from_zero(x, results):
    words = x[:, 0].contiguous().view(torch.int32).numpy().view(numpy.uint32)
    finite = numpy.isfinite(x[:, 0].numpy())
    want = numpy.where(finite, (words + 0x1000) & 0xFFFFE000, words)
    assert numpy.array_equal(results[0][7], want)
    assert (results[0][7][finite] & 0x1FFF == 0).all()


def test_every_fp8_number_becomes_a_half(results):
    byte = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    pairs = torch.stack([byte, byte.flip(0)], 1)
    for words, dtype in zip(results[1].reshape(2, 256), (torch.float8_e4m3fn, torch.float8_e5m2), strict=True):
        got, want = words.view(numpy.float16).reshape(256, 2), pairs.view(dtype).half().numpy()
        assert numpy.array_equal(got, want, equal_nan=True)
        known = ~numpy.isnan(want)
        assert numpy.array_equal(got[known].view(numpy.uint16), want[known].view(numpy.uint16))


def test_not_a_number_stays_one(device):
    x, y, z = torch.full((128, 4), float("nan")), torch.zeros(8, 128, dtype=torch.uint32), torch.zeros(512, dtype=torch.uint32)
    y = y.to(device)
    KERNEL(1, 128, (x.to(device), y, z.to(device), 128))
    rows = y.cpu().view(torch.int32).numpy().view(numpy.uint32)[:, 0]
    assert [hex(word) for word in rows[:6]] == ["0x7fff7fff"] * 4 + ["0x7f7f7f7f"] * 2
    assert numpy.isnan(rows[7:8].view(numpy.float32))


def test_compiles_without_spills(arch):
    resources = KERNEL.resources(arch)
    assert resources.spill_store_bytes == 0 and resources.stack_bytes == 0
