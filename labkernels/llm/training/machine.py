"""What the machine does while it trains: memory, utilisation, power and clock of the GPU, load and memory of the CPU.

Notable:
- the GPU's memory is PyTorch's, the most so far; the rest of the GPU is NVML's, the CPU's psutil's; what is missing on a machine is left out
- both are asked twice a second at most, however short the steps are; rows in between have the last answer
"""

from __future__ import annotations

import torch


class Machine:
    """Utilisation of GPU and CPU, read twice a second at most."""

    def __init__(self, device: torch.device):
        self._device, self._next, self._last = device, 0.0, {}
        self._psutil = self._nvml = self._handle = None
        try:
            import psutil

            self._psutil = psutil
            psutil.cpu_percent()  # the first answer is about nothing
        except ImportError:
            pass
        if device.type == "cuda":
            try:
                import pynvml

                pynvml.nvmlInit()
                index = torch.cuda.current_device() if device.index is None else device.index
                uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"  # CUDA_VISIBLE_DEVICES renumbers
                self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
            except Exception:  # noqa: BLE001  no NVML, no rights, another driver: the columns are left out
                self._nvml = None

    def read(self, now: float) -> dict[str, float]:
        if now < self._next:
            return self._last
        self._next, found = now + 0.5, {}
        if self._device.type == "cuda":
            found["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(self._device) / 1e9, 3)
        if self._nvml is not None:
            nvml, handle = self._nvml, self._handle
            for name, ask in (
                ("gpu_utilisation", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
                ("gpu_watts", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
                ("gpu_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            ):
                try:
                    found[name] = ask()
                except Exception:  # noqa: BLE001  not every GPU tells everything
                    continue
        if self._psutil is not None:
            found["cpu_percent"] = self._psutil.cpu_percent()
            found["memory_gb"] = round(self._psutil.Process().memory_info().rss / 1e9, 3)
        self._last = found
        return found

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None
