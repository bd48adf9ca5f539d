"""NVIDIA's management library in; a GPU's power, energy, clocks, temperature, load, memory and throttle reasons out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from edgeclip.devices.sensors.base import NEVER, Channel, Found, SensorAccuracy, SensorSource
from edgeclip.errors import MissingExtraError
from edgeclip.extras import require

# nvidia-smi's manual gives ±5 W for the board's power, NVML's reference ±5 %; both are taken. Field measurements found
# single cards within 5 % but A100 and H100 to sample a quarter of the time (arXiv 2312.02741).
_DOCUMENT = "nvidia-smi's manual: ±5 W; NVML's reference: ±5 %"
_POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT: drivers from 530 on
_AVERAGED_S = 1.0  # nvmlDeviceGetPowerUsage from Ampere on (but for GA100)

# nvmlClocksEventReason…: what holds the clock below what the load asks for. Idle and chosen clocks are not among them.
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "too hot (driver)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}


def nvml_sources(nvml: Any | None = None, *, in_total: bool = True) -> Found:
    """One source a GPU, or why there is none.

    Args:
        nvml: a module with the functions of ``pynvml``; by default that module, if there is a driver.
        in_total: whether the GPU's power is part of the machine's total; not on a Jetson, whose rails hold it.
    """
    if nvml is None:
        try:
            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return Found(absent={"GPU": "no NVIDIA driver"})
        try:
            nvml = require("pynvml", purpose="read an NVIDIA GPU's sensors")
        except MissingExtraError as error:
            return Found(absent={"GPU": str(error)})
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return Found(absent={"GPU": f"NVML does not start ({error})"})
    found = Found()
    for number in range(count):
        name = "GPU" if count == 1 else f"GPU {number}"
        try:
            found.sources.append(NvmlSource(nvml, nvml.nvmlDeviceGetHandleByIndex(number), name, in_total))
        except nvml.NVMLError as error:
            found.absent[name] = str(error)
    return found


class NvmlSource(SensorSource):
    """What one GPU reports; what it says it does not support is left out.

    Args:
        nvml: ``pynvml``, initialised.
        handle: the GPU's.
        name: of its channels.
        in_total: whether its power is part of the machine's total.

    Raises:
        NVMLError: it supports nothing.
    """

    def __init__(self, nvml: Any, handle: Any, name: str, in_total: bool) -> None:
        self._nvml = nvml
        self._faults: dict[int, str] = {}
        self.name = f"NVML of {_text(nvml.nvmlDeviceGetName(handle))}"
        self._readings: list[tuple[Channel, Callable[[], float]]] = []
        counted = self._offer(
            Channel(
                f"{name} board", "energy_j", "gpu", in_total=in_total, accuracy=SensorAccuracy(5.0, 0.05, _DOCUMENT)
            ),
            lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3,
        )
        self._offer_power(handle, name, in_total=in_total and not counted)
        self._offer(
            Channel(name, "temperature_c", "gpu"),
            lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        )
        self._offer(
            Channel(name, "clock_mhz", "gpu"), lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        )
        self._offer(Channel(name, "load", "gpu"), lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100)
        self._offer(Channel(name, "memory_mb", "gpu"), lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used) / 1e6)
        # Two names of one function: the older is in every driver and is to go with CUDA 14.
        for function in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            if self._offer_throttling(getattr(nvml, function, None), handle, name):
                break
        if not self._readings:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        self._channels = tuple(channel for channel, _ in self._readings)

    def read(self) -> Sequence[float]:
        """One value a channel."""
        return [self._value(index, function) for index, (_, function) in enumerate(self._readings)]

    def fault(self, index: int) -> str:
        """NVML's reason."""
        return self._faults.get(index, "")

    def _value(self, index: int, function: Callable[[], float]) -> float:
        try:
            value = function()
        except self._nvml.NVMLError as error:
            self._faults[index] = str(error)
            return NEVER
        self._faults.pop(index, None)
        return value

    def _offer(self, channel: Channel, function: Callable[[], float]) -> bool:
        """Take a reading into the source if the GPU supports it."""
        try:
            function()
        except self._nvml.NVMLError:
            return False
        self._readings.append((channel, function))
        return True

    def _offer_throttling(self, reasons: Callable[[Any], int] | None, handle: Any, name: str) -> bool:
        channel = Channel(name, "throttle", "gpu", reasons=THROTTLE_REASONS)
        return reasons is not None and self._offer(channel, lambda: float(reasons(handle)))

    def _offer_power(self, handle: Any, name: str, *, in_total: bool) -> None:
        def instant() -> float:
            (field,) = self._nvml.nvmlDeviceGetFieldValues(handle, [_POWER_INSTANT])
            if field.nvmlReturn != 0:
                raise self._nvml.NVMLError(field.nvmlReturn)
            return float(field.value.uiVal) * 1e-3

        accuracy = SensorAccuracy(5.0, 0.05, _DOCUMENT)
        if self._offer(Channel(name, "power_w", "gpu", in_total=in_total, accuracy=accuracy), instant):
            return
        averaged = SensorAccuracy(5.0, 0.05, _DOCUMENT, lag_s=_AVERAGED_S)
        self._offer(
            Channel(name, "power_w", "gpu", in_total=in_total, accuracy=averaged),
            lambda: float(self._nvml.nvmlDeviceGetPowerUsage(handle)) * 1e-3,
        )


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
