"""cuBLAS and CUTLASS by way of torch._scaled_mm: with sums that stay in the tensor cores ("fast accumulation"), and with float32 ones."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from labkernels.operation import Peer


def scaled_mm(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16, use_fast_accum=True) -> torch.Tensor:
    """torch._scaled_mm. A scale for the whole matrix beside one for each row or column is given as many times as there are of these."""
    if scale_a.numel() > 1 or scale_b.numel() > 1:
        scale_a = scale_a.reshape(-1, 1).expand(a.shape[0], 1).contiguous()
        scale_b = scale_b.reshape(1, -1).expand(1, b.shape[1]).contiguous()
    return torch._scaled_mm(a, b, scale_a, scale_b, bias=bias, out_dtype=out_dtype, use_fast_accum=use_fast_accum)


def native(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    """PyTorch's own. It wants n and k to be multiples of 16: for other sizes it is given zeros beyond them."""
    (m, k), n = a.shape, b.shape[1]
    more_k, more_n = -k % 16, -n % 16
    if not m * n * k:
        zeros = torch.zeros((m, n), dtype=out_dtype, device=a.device)
        return zeros if bias is None else zeros + bias
    if more_k or more_n or not _aligned(a, b, bias):
        a, b = _padded(a, 0, more_k), _padded(b.t(), more_n, more_k).t()
        scale_b = F.pad(scale_b.reshape(-1), (0, more_n)).reshape(1, -1) if scale_b.numel() > 1 else scale_b
        bias = None if bias is None else F.pad(bias, (0, more_n))
    return scaled_mm(a, b, scale_a, scale_b, bias, out_dtype)[:, :n].contiguous()


def _padded(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return F.pad(x.contiguous().view(torch.uint8), (0, columns, 0, rows)).view(x.dtype)


def _aligned(*tensors) -> bool:
    """Do all rows (of b: columns) lie on multiples of 16 bytes?"""
    return all(t is None or t.data_ptr() % 16 == 0 and max(t.stride()) * t.element_size() % 16 == 0 for t in tensors)


def _accepts(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> str | None:
    if not a.is_cuda:
        return "needs a GPU"
    if a.shape[1] % 16 or b.shape[1] % 16 or not a.shape[1]:
        return "torch._scaled_mm takes k and n that are multiples of 16"
    if out_dtype != torch.bfloat16 and scale_a.numel() * scale_b.numel() > 1:
        return "torch._scaled_mm has scales for rows and columns in bfloat16 alone"
    return None


PEERS = {
    peer.name: peer
    for peer in (
        Peer("scaled_mm_fast", scaled_mm, _accepts),
        Peer("scaled_mm", partial(scaled_mm, use_fast_accum=False), _accepts),
    )
}
