"""Out of memory, told so that one knows what to change: what the step needs by the estimate, what there is, what each remedy would need.

    with explained_out_of_memory(config, batch=16, seq_len=2048, checkpointing="none", optimizer="adamw"):
        loss = model(inputs, targets); loss.backward(); optimizer.step()

The options are those of labkernels.llm.estimate.training_memory, which judges the remedies too; they are told as TrainConfig's fields.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from labkernels.errors import LabKernelsError
from labkernels.llm.config import ModelConfig
from labkernels.llm.estimate import training_memory, with_extras

_GB = 1e9
_WASTED = 0.1  # of what is reserved and not in use, from where fragmentation is worth a word


class OutOfMemory(LabKernelsError):
    """A training step does not fit; the text has the estimate and the remedies."""


@contextlib.contextmanager
def explained_out_of_memory(
    config: ModelConfig, batch: int, seq_len: int, device: torch.device | str = "cuda", **options
) -> Iterator[None]:
    """Turns torch.OutOfMemoryError, of a GPU or of the CPU's allocator, into OutOfMemory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(explain(config, batch, seq_len, device, wanted=str(error).split("\n")[0], **options)) from error


def explain(config: ModelConfig, batch: int, seq_len: int, device: torch.device | str = "cuda", wanted: str = "", **options) -> str:
    """The report: the estimate by part, the device's memory, and the remedies from the mildest on."""
    now = training_memory(config, batch, seq_len, **options)
    lines = [f"out of memory in a step of {batch} x {seq_len} tokens"]
    if wanted:
        lines.append(f"  {wanted}")
    lines.append(f"estimated peak {now.peak / _GB:.2f} GB: " + ", ".join(f"{name} {size / _GB:.2f}" for name, size in now.items() if size))
    lines += _on_device(torch.device(device), now.peak)
    remedies = remedies_for(config, batch, seq_len, **options)
    lines += ["what to change, and the peak it is estimated to have:", *(f"  {what}: {peak / _GB:.2f} GB" for what, peak in remedies)]
    if not remedies:
        lines.append("  nothing is left but a smaller model, or shards of it on several GPUs (FSDP)")
    return "\n".join(lines)


def remedies_for(config: ModelConfig, batch: int, seq_len: int, **options) -> list[tuple[str, int]]:
    """(what to change, estimated peak in bytes) of every change that needs less than what there is, alone, then together."""
    now = training_memory(config, batch, seq_len, **options)
    changes: list[tuple[str, int, dict]] = []
    kernels = with_extras(options.get("kernels", "labkernels"))
    if kernels["loss"] == "torch":
        ours = {"kernels": {**kernels, "loss": "labkernels"}}
        changes.append(('kernels={"loss": "labkernels", ...}, which never holds the logits', batch, ours))
    for mode in ("selective", "full"):
        if options.get("checkpointing", "none") in ("none", "selective") and mode != options.get("checkpointing", "none"):
            changes.append((f"checkpointing={mode!r}", batch, {"checkpointing": mode}))
    if batch > 1:
        halved = -(-batch // 2)
        changes.append((f"batch_size={halved}, and accumulate doubled", halved, {"accumulate": True}))
    if options.get("state_dtype", torch.float32) == torch.float32:
        changes.append(('moments="bf16"', batch, {"state_dtype": torch.bfloat16}))
    if options.get("dtype", torch.bfloat16) == torch.float32:
        changes.append(('precision="bf16", master="stochastic"', batch, {"dtype": torch.bfloat16, "master_weights": False}))
    elif options.get("master_weights", True):
        changes.append(('master="stochastic", no float32 copies of the weights', batch, {"master_weights": False}))
    alone = [(what, training_memory(config, size, seq_len, **(options | change)).peak) for what, size, change in changes]
    useful = [(what, peak) for what, peak in alone if peak < now.peak]
    if len(useful) > 1:
        together: dict = {}
        for (_, _, change), (_, peak) in zip(changes, alone, strict=True):
            together |= change if peak < now.peak else {}
        smallest = training_memory(config, 1, seq_len, **(options | together)).peak
        if smallest < min(peak for _, peak in useful):
            useful.append(("all of these, one sequence at a time", smallest))
    return useful


def _on_device(device: torch.device, estimated: int) -> list[str]:
    if device.type != "cuda" or not torch.cuda.is_available():
        return []
    free, total = torch.cuda.mem_get_info(device)
    used, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    here = f"this process holds {reserved / _GB:.1f} GB, {used / _GB:.1f} GB in use"
    lines = [f"the GPU has {total / _GB:.1f} GB, {free / _GB:.1f} GB of it free; {here}"]
    if total - free - reserved > 0.05 * total:
        lines.append(f"other processes hold some {(total - free - reserved) / _GB:.1f} GB of it")
    if reserved - used > _WASTED * total:
        lines.append(
            f"{(reserved - used) / _GB:.1f} GB are held in pieces too small: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True may help"
        )
    if estimated < 0.9 * (reserved + free):
        lines.append("by the estimate it should fit: look for tensors that are kept from step to step, such as losses with their graph")
    return lines
