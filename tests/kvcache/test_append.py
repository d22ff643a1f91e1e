"""Appending: every token in its slot and nowhere else, quantised as layout.py says, strided inputs, wrong ones named."""

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.errors import ArgumentError
from labkernels.kvcache import cache_append
from labkernels.kvcache.layout import dequantise, gather, quantise, slots_for

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def cache(pages, kv_heads, page_size, head_dim, dtype, device):
    """Filled with something that is nothing a token could be."""
    full = dtype.is_floating_point and dtype.itemsize > 1
    made = [torch.full((pages, kv_heads, page_size, head_dim), 7.0 if full else 1.0, device=device).to(dtype) for _ in range(2)]
    return made, [None, None] if full else [torch.full((pages, kv_heads, page_size), -1.0, device=device) for _ in range(2)]


def appended(k, v, caches, scales, slots):
    """What must come out, slot by slot."""
    caches, scales = [each.clone() for each in caches], [each if each is None else each.clone() for each in scales]
    for which, new in enumerate((k, v)):
        stored, scale = (new, None) if scales[which] is None else quantise(new, caches[which].dtype)
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                page, offset = divmod(slot, caches[which].shape[2])
                caches[which][page, :, offset] = stored[token]
                if scale is not None:
                    scales[which][page, :, offset] = scale[token]
    return caches, scales


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, stored", [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.int8), (torch.bfloat16, torch.float8_e4m3fn)])
def test_tokens_come_to_their_slots(dtype, stored, device):
    for tokens, kv_heads, page_size, head_dim in ((1, 1, 4, 64), (11, 2, 16, 64), (5, 3, 7, 33)):
        k, v = (3 * torch.randn(2, tokens, kv_heads, head_dim, generator=torch.Generator().manual_seed(tokens))).to(device, dtype)
        v[0] = 0
        (k_cache, v_cache), scales = cache(4, kv_heads, page_size, head_dim, stored, device)
        slots = torch.randperm(4 * page_size, generator=torch.Generator().manual_seed(1))[:tokens].to(device)
        slots[tokens // 2] = -1 if tokens > 1 else slots[0]
        want, want_scales = appended(k, v, (k_cache, v_cache), scales, slots)
        if device == "cpu" and head_dim == 33:
            with sanitizing():
                cache_append(k, v, k_cache, v_cache, slots, *scales)
        else:
            cache_append(k, v, k_cache, v_cache, slots, *scales)
        for got, right in zip((k_cache, v_cache), want):
            if device == "cpu" or stored == dtype:
                assert torch.equal(got.view(torch.uint8), right.view(torch.uint8))
            else:  # PyTorch on a GPU divides by a number with a multiplication, which may round otherwise
                assert (got.float() - right.float()).abs().max() <= (1 if stored == torch.int8 else 32)
        for got, right in zip(scales, want_scales):
            assert got is None or torch.allclose(got, right, rtol=1e-6, atol=0)


def test_a_contiguous_cache_of_a_layer_takes_a_projections_output():
    """k and v side by side in one tensor, (batch, seq, heads, head_dim); the cache a view of all layers."""
    projected = torch.randn(2, 3, 2, 2, 64)
    k_cache, v_cache = torch.zeros(2, 5, 2, 2, 8, 64)[:, 1]
    positions = torch.tensor([[0, 1, 2], [4, 5, -1]])
    slots = slots_for(positions, None, 8).flatten()
    assert slots.tolist() == [0, 1, 2, 12, 13, -1]
    cache_append(projected[:, :, 0].flatten(0, 1), projected[:, :, 1].flatten(0, 1), k_cache, v_cache, slots)
    torch.testing.assert_close(k_cache[0, :, :3], projected[0, :, 0].transpose(0, 1))
    torch.testing.assert_close(v_cache[1, :, 4:6], projected[1, :2, 1].transpose(0, 1))
    assert (v_cache[1, :, 6:] == 0).all() and (k_cache[0, :, 3:] == 0).all()


def test_slots_of_pages_and_gathering_them_back():
    table = torch.tensor([[3, 1], [0, -1]], dtype=torch.int32)
    positions = torch.tensor([[0, 5], [2, 3]])
    assert slots_for(positions, table, 4).tolist() == [[12, 5], [2, 3]]
    cache = torch.arange(16.0).view(4, 1, 4, 1)
    assert gather(cache, table, 6)[:, 0, :, 0].tolist() == [[12, 13, 14, 15, 4, 5], [0, 1, 2, 3, 0, 1]]


@pytest.mark.parametrize("stored", [torch.float32, torch.int8])
def test_pytorch_is_told_what_was_written(stored):
    caches, scales = cache(2, 1, 16, 64, stored, "cpu")
    k, v = torch.randn(2, 3, 1, 64)
    for half in caches + [scale for scale in scales if scale is not None]:
        before = half._version
        cache_append(k, v, *caches, torch.tensor([3, 17, -1]), *scales)
        assert half._version > before
    assert k._version == v._version == 0


def test_nothing_to_append():
    (k_cache, v_cache), _ = cache(2, 1, 4, 64, torch.float32, "cpu")
    cache_append(torch.zeros(0, 1, 64), torch.zeros(0, 1, 64), k_cache, v_cache, torch.zeros(0, dtype=torch.int64))
    assert (k_cache == 7).all()


def test_wrong_inputs_are_named():
    (k_cache, v_cache), _ = cache(2, 1, 4, 64, torch.float32, "cpu")
    good = {"k": torch.zeros(2, 1, 64), "v": torch.zeros(2, 1, 64), "k_cache": k_cache, "v_cache": v_cache, "slots": torch.tensor([0, 1])}
    for change, message in (
        ({"slots": torch.tensor([0, 8])}, "slots names slot 8; the cache has 8"),
        ({"slots": torch.tensor([0, 1], dtype=torch.int32)}, r"slots is int32 of shape \(2,\); it must be int64"),
        ({"v": torch.zeros(1, 1, 64)}, "both must be equal"),
        ({"k": torch.zeros(2, 1, 64).half(), "v": torch.zeros(2, 1, 64).half()}, "the cache is float32, k is float16"),
        ({"k_cache": k_cache.to(torch.int8), "v_cache": v_cache.to(torch.int8)}, "of the cache, k_scale is missing"),
    ):
        with pytest.raises(ArgumentError, match=f"cache_append: .*{message}"):
            cache_append(**{**good, **change})


def test_zeros_stay_zeros():
    for dtype in (torch.int8, torch.float8_e4m3fn):
        assert (dequantise(*quantise(torch.zeros(2, 64), dtype)) == 0).all()
