"""A graph's cost and a device's peaks in; the range in which a batch's latency will lie, and what bounds it, out.

A batch takes its products at a share of the peak, its depthwise convolutions at a share of plain arithmetic, reads its
weights and moves its activations at a share of the bandwidth, and starts its kernels. What an engine reaches of each
stands in ``shares.toml``, fitted to published latencies by ``tools/fit_latency.py``. What comes out is a range, which
held four of five of the latencies that the fit had not seen; never a promise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import msgspec

from edgeclip.devices.catalogue.profile import DeviceProfile
from edgeclip.devices.plan.cost import GraphCost, Work, WorkKind
from edgeclip.errors import InputError

SHARES = Path(__file__).with_name("shares.toml")
ELEMENT_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_WIDE_BYTES = {**ELEMENT_BYTES, "int8": 2}  # of activations between INT8's products, but for those of convolutions
_CPU_BANDWIDTH_GB_S = 40.0  # two channels of DDR4; profiles of CPUs are of instructions, not of boards
_TENSOR_TO_PLAIN = 8  # FP16 products of tensor cores for one FP32 product of the other cores, from Volta on
# FP32 arithmetic that a card does for each watt of its limit: one whose boost clock promises more does not hold that
# clock under load. RTX 4090 and 5090 stay below with 0.18; L4 (0.42) and RTX PRO 6000 Max-Q (0.37) do not.
_HELD_TFLOPS_PER_W = 0.2
_NOTHING = Work(kernels=0, macs=0, traffic=0)

# Engines as ``edgeclip.engine_list`` calls them, and PyTorch for comparison → whose shares are theirs.
SHARES_OF = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt",
    "onnxruntime-tensorrt": "tensorrt",
    "onnxruntime-tensorrt-rtx": "tensorrt",
    "onnxruntime-cuda": "onnxruntime-cuda",
    "pytorch": "pytorch",
    "pytorch-eager": "pytorch-eager",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
}
# Compute capabilities of TensorRT-RTX 1.7: NVIDIA, TensorRT-RTX support matrix,
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html
_RTX_CAPABILITIES = {"7.5", "8.6", "8.9", "12.0", "12.1"}
# The others take Q/DQ graphs operator by operator, in FP32 and slower than FP32's own, or not at all.
_MULTIPLIES_IN_INT8 = {"tensorrt", "onnxruntime", "openvino"}
_ADDS_IN_FP16 = {"tensorrt"}  # the others sum FP16 products in FP32, which GeForce cards do at half the rate


@dataclass(frozen=True)
class Range:
    """A quantity that is known to lie between two values only."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Geometric mean."""
        return math.sqrt(self.low * self.high)


class Shares(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine reaches of a device's peaks.

    Attributes:
        matrix: of the peak of products in floating point.
        int8: of ``matrix``, what it reaches of the peak in INT8.
        depthwise: of the peak of plain FP32 arithmetic, by convolutions in groups.
        bandwidth: of the memory's.
        attention_traffic: of the numbers that attention moves unfused, those that reach the memory.
        depthwise_traffic: times that convolutions in groups move their numbers.
        kernel_us: microseconds to start a kernel.
        error: the range's ends are the middle divided and multiplied by it.
        calibrated_error: the same where the engine was measured on the device.
    """

    matrix: float
    int8: float
    depthwise: float
    bandwidth: float
    attention_traffic: float
    depthwise_traffic: float
    kernel_us: float
    error: float = 1.0
    calibrated_error: float = 1.0

    def factors(self, precision: str) -> tuple[float, ...]:
        """By what each part of an ``ideal_ms`` is multiplied."""
        return (
            1 / (self.matrix * (self.int8 if precision == "int8" else 1.0)),
            1 / self.depthwise,
            1 / self.bandwidth,
            1 / self.bandwidth,
            self.attention_traffic / self.bandwidth,
            self.depthwise_traffic / self.bandwidth,
            self.kernel_us / 1e3,
        )


class FittedShares(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of shares.

    Attributes:
        gpu, cpu: by engine.
        architectures: by what a latency is multiplied on GPUs of one, with whatever engine; 1 where none was seen.
    """

    gpu: dict[str, Shares]
    cpu: dict[str, Shares]
    architectures: dict[str, float]


@cache
def load_shares() -> FittedShares:
    """The shares that this version was fitted with."""
    return msgspec.toml.decode(SHARES.read_bytes(), type=FittedShares)


@dataclass(frozen=True)
class Estimate:
    """What a batch will take.

    Attributes:
        batch: images.
        latency_ms: of the whole batch, once its images lie in the device's memory.
        bound_by: the largest part of it: ``arithmetic``, ``reading weights``, ``moving activations`` or
            ``starting kernels``.
    """

    batch: int
    latency_ms: Range
    bound_by: str

    @property
    def images_per_s(self) -> Range:
        """Throughput with one batch after the other."""
        return Range(self.batch * 1e3 / self.latency_ms.high, self.batch * 1e3 / self.latency_ms.low)


@dataclass(frozen=True)
class Device:
    """A device's peaks, as one engine meets them in one precision.

    Attributes:
        peak_tflops: of products, dense, in 1e12 operations a second; a multiply–accumulate is two.
        plain_tflops: of FP32 arithmetic that is no matrix product.
        bandwidth_gb_s: of the memory, 1e9 bytes a second; None where it is not known: what is read is then not
            counted.
        slowness: by what latencies are multiplied on its architecture.
    """

    peak_tflops: float
    plain_tflops: float
    bandwidth_gb_s: float | None
    slowness: float = 1.0


def ideal_ms(cost: GraphCost, precision: str, device: Device, batch: int) -> tuple[float, ...]:
    """What a batch would take at the peaks, milliseconds: products, convolutions in groups, reading weights, moving
    numbers of products and norms, of attention, of convolutions in groups; and kernels, which take none.
    """
    matrix, convolution, attention, depthwise, other = (cost.by_kind.get(kind, _NOTHING) for kind in get_args(WorkKind))
    byte_ms = 0.0 if device.bandwidth_gb_s is None else 1 / (device.bandwidth_gb_s * 1e6)
    wide_ms = _WIDE_BYTES[precision] * batch * byte_ms
    number_ms = ELEMENT_BYTES[precision] * batch * byte_ms
    return (
        2 * (matrix.macs + convolution.macs + attention.macs) * batch / (device.peak_tflops * 1e9),
        2 * depthwise.macs * batch / (device.plain_tflops * 1e9),
        cost.weights * ELEMENT_BYTES[precision] * byte_ms,
        convolution.traffic * number_ms + (matrix.traffic + other.traffic) * wide_ms,
        attention.traffic * wide_ms,
        depthwise.traffic * number_ms,
        float(sum(work.kernels for work in cost.by_kind.values())),
    )


def estimate(cost: GraphCost, precision: str, device: Device, *, batch: int, shares: Shares) -> Estimate:
    """The range in which the latency of a batch will lie.

    Args:
        cost: of one image.
        precision: of the heavy products, a key of ``ELEMENT_BYTES``.
        batch: images.
    """
    ideal = ideal_ms(cost, precision, device, batch)
    products, grouped, weights, *moved, kernels = (
        part * factor for part, factor in zip(ideal, shares.factors(precision), strict=True)
    )
    parts = {
        "arithmetic": products + grouped,
        "reading weights": weights,
        "moving activations": sum(moved),
        "starting kernels": kernels,
    }
    middle = sum(parts.values()) * device.slowness
    latency = Range(middle / shares.error, middle * shares.error)
    return Estimate(batch, latency, max(parts, key=lambda name: parts[name]))


def engines_of(profile: DeviceProfile) -> tuple[str, ...]:
    """Names of the engines whose speed can be estimated on a device; the first is taken where none is named."""
    fitted = load_shares().cpu if profile.kind == "cpu" else load_shares().gpu
    known = tuple(name for name, shares in SHARES_OF.items() if shares in fitted)
    if profile.kind == "cpu":
        return ("openvino", *(name for name in known if name != "openvino"))
    if profile.kind == "jetson":  # where it starts each operator from a CPU that nothing was fitted to
        known = tuple(name for name in known if name != "pytorch-eager")
    if profile.compute_capability in {None, *_RTX_CAPABILITIES}:
        return known
    return tuple(name for name in known if not name.endswith("tensorrt-rtx"))


def shares_of(engine: str, profile: DeviceProfile) -> Shares:
    """What an engine reaches on a kind of devices.

    Raises:
        InputError: an engine that does not run there, or of which nothing is known.
    """
    if engine not in (known := engines_of(profile)):
        raise InputError(f"expected an engine of {profile.name} out of {', '.join(known)}, got {engine!r}")
    fitted = load_shares().cpu if profile.kind == "cpu" else load_shares().gpu
    return fitted[SHARES_OF[engine]]


def device_of(
    profile: DeviceProfile, precision: str, engine: str, *, cores: int | None = None, ghz: float | None = None
) -> Device | None:
    """A profile's peaks as an engine meets them; None where they are not published, the engine has no products of the
    precision, or a CPU lacks cores or clock.
    """
    if precision == "int8" and SHARES_OF[engine] not in _MULTIPLIES_IN_INT8:
        return None
    peak, fp32 = profile.peak(precision), profile.peak("fp32")
    if peak is None or (peak.per == "core_ghz" and None in (cores, ghz)):
        return None
    held = _held(profile)
    tflops = held * peak.total(cores=cores or 1, ghz=ghz or 1.0, fp32_sums=SHARES_OF[engine] not in _ADDS_IN_FP16)
    bandwidth = profile.memory.bandwidth_gb_s.value if profile.memory.bandwidth_gb_s else None
    slowness = load_shares().architectures.get(profile.architecture, 1.0)
    if fp32 is not None:
        plain = held * fp32.total(cores=cores or 1, ghz=ghz or 1.0)
    elif (half := profile.peak("fp16")) is not None:
        plain = half.tflops.value / (_TENSOR_TO_PLAIN if half.units == "tensor" else 2)
    else:
        plain = tflops
    return Device(tflops, plain, bandwidth or (_CPU_BANDWIDTH_GB_S if profile.kind == "cpu" else None), slowness)


def _held(profile: DeviceProfile) -> float:
    """What share of its peaks a card of that power limit holds under load; 1 where no limit is published."""
    fp32 = profile.peak("fp32")
    if profile.kind != "gpu" or profile.power_w is None or fp32 is None:
        return 1.0
    return min(1.0, _HELD_TFLOPS_PER_W * profile.power_w.value / fp32.total())


def estimate_on(
    profile: DeviceProfile,
    cost: GraphCost,
    precision: str,
    engine: str,
    *,
    batch: int = 1,
    cores: int | None = None,
    ghz: float | None = None,
) -> Estimate | None:
    """As ``estimate``, of a profile and an engine; None where ``device_of`` gives none.

    Raises:
        InputError: an engine that does not run there, or of which nothing is known.
    """
    shares = shares_of(engine, profile)
    device = device_of(profile, precision, engine, cores=cores, ghz=ghz)
    return None if device is None else estimate(cost, precision, device, batch=batch, shares=shares)
