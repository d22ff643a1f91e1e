"""One implementation, one set of inputs: is what it computes right? `check` asks this of many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from labkernels.cuda import gpu
from labkernels.errors import LaunchError, SanitizerError
from labkernels.lab.candidate import Candidate
from labkernels.lab.compare import compare, differing_bits
from labkernels.lab.failure import CheckFailed
from labkernels.lab.guilty_line import guilty_line
from labkernels.operation import Op, Shape, dtype_name


ENDED = "It ran in a process of its own, which has been ended; this one is unharmed."


@dataclass(frozen=True)
class Case:
    """One set of inputs: `case.inputs(op)` makes the same ones each time, on any device."""

    shape: Shape
    dtype: torch.dtype
    seed: int
    device: str

    def inputs(self, op: Op) -> dict:
        return op.make_inputs(torch.Generator().manual_seed(self.seed), self.device, self.dtype, **self.shape)

    def __str__(self) -> str:
        sizes = ", ".join(f"{name}={value}" for name, value in self.shape.items())
        return f"{sizes}; {dtype_name(self.dtype)}, seed {self.seed}, {self.device}"


@dataclass(frozen=True)
class Judge:
    """Judges `candidate` as an implementation of `op`, in this process. `apart` says that this process serves nothing else."""

    op: Op
    candidate: Candidate
    device: str  # of the cases: "cpu" or "cuda"
    apart: bool = False

    def sanitize(self, case: Case) -> str | None:
        """Run the candidate on a small case of CPU tensors under the emulator's sanitizer.

        None if that went well. Else what there is to say of the sanitizer once and for all: further cases need not be tried.
        Raises CheckFailed for findings, and for what would crash on a GPU and take its process with it.
        """
        from labkernels.cuda import sanitizing

        inputs = case.inputs(self.op)
        if self.candidate.accepts(**inputs) is not None:
            return None
        try:
            with _one_thread(), sanitizing():
                self.candidate(self.op, inputs)
        except SanitizerError as error:
            raise CheckFailed("sanitizer", case=str(case), detail=str(error.report)) from error
        except LaunchError as error:
            raise self._exception(case, error) from error
        except Exception as error:
            if self.device == "cpu":
                return "clean"  # the cases that follow run into the same error, and report it
            return f"not run, {self.candidate.name} needs a GPU ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        return None

    def judge(self, case: Case, repeat: bool) -> str | None:
        """Raise CheckFailed unless everything about the result is right; with `repeat`, a second time too.

        None, or why the candidate does not take these inputs.
        """
        from labkernels.cuda import isolated

        inputs = case.inputs(self.op)
        refusal = self.candidate.accepts(**inputs)
        if refusal is None:
            with _one_thread(), isolated() if self.device == "cpu" else nullcontext():
                self._judge(case, inputs, repeat)
        return refusal

    def _judge(self, case: Case, inputs: dict, repeat: bool) -> None:
        def run():
            try:
                return self.candidate(self.op, inputs)
            except Exception as error:
                raise self._exception(case, error) from error

        before = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        got = run()
        for name, value in before.items():
            if differing_bits(inputs[name], value).any():
                raise CheckFailed("input_modified", where=name, case=str(case), detail=f"{self.candidate.name} must leave {name} as it was")
        compare(self.op, case, inputs, got, run, repeat, self.candidate.owner)

    def _exception(self, case: Case, error: Exception) -> CheckFailed:
        crash = gpu.crash()
        return CheckFailed(
            "exception",
            where=guilty_line(error) or "",
            got=crash or f"{type(error).__name__}: {error}",
            case=str(case),
            detail=(ENDED if self.apart else "This process cannot use the GPU any more: restart it.") if crash else "",
            hint="lk.sanitize, on CPU tensors of the same shapes, names the line." if crash else None,
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: on these small tensors its threads wait for each other more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
