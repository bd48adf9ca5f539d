"""A graph's cost and a device's peaks in; the range in which a batch's latency will lie, and what bounds it, out.

A batch takes its products at a share of the peak, reads its weights and moves its activations at a share of the
bandwidth, and starts its kernels. The shares below are not known before anything has run: they are ranges, wide enough
that every latency in ``published.toml`` lies inside. What comes out is a range too, never a promise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeclip.devices.plan.cost import GraphCost

ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_ACTIVATION_BYTES = {**ELEMENT_BYTES, "int8": 2}  # between products, activations stay in 16 bits


@dataclass(frozen=True)
class Range:
    """A quantity that is known to lie between two values only."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Geometric mean."""
        return math.sqrt(self.low * self.high)


@dataclass(frozen=True)
class Shares:
    """What of its peaks a device reaches, at best and at worst.

    Attributes:
        peak: of the arithmetic.
        bandwidth: of the memory.
        traffic: of the activations that reach the memory rather than stay in caches or registers.
        kernel_us: microseconds to start a kernel.
    """

    peak: Range
    bandwidth: Range
    traffic: Range
    kernel_us: Range


GPU = Shares(peak=Range(0.4, 0.8), bandwidth=Range(0.7, 0.95), traffic=Range(0.0, 1.0), kernel_us=Range(2.0, 10.0))
CPU = Shares(peak=Range(0.15, 0.8), bandwidth=Range(0.5, 0.95), traffic=Range(0.0, 0.5), kernel_us=Range(2.0, 20.0))


@dataclass(frozen=True)
class Estimate:
    """What a batch will take.

    Attributes:
        batch: images.
        latency_ms: of the whole batch.
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


def estimate(
    cost: GraphCost, precision: str, *, peak_tflops: float, bandwidth_gb_s: float | None, batch: int, shares: Shares
) -> Estimate:
    """The range in which the latency of a batch will lie.

    Args:
        cost: of one image.
        precision: of the heavy products, a key of ``ELEMENT_BYTES``.
        peak_tflops: dense, of that precision, in 1e12 operations a second; a multiply–accumulate is two.
        bandwidth_gb_s: of the memory, 1e9 bytes a second; None where it is not known: what is read is then not
            counted.
        batch: images.
    """
    products_ms = 2 * cost.macs * batch / (peak_tflops * 1e9)
    weights_ms = activations_ms = 0.0
    if bandwidth_gb_s is not None:
        weights_ms = cost.weights * ELEMENT_BYTES[precision] / (bandwidth_gb_s * 1e6)
        activations_ms = cost.activation_traffic * _ACTIVATION_BYTES[precision] * batch / (bandwidth_gb_s * 1e6)
    parts = {
        "arithmetic": Range(products_ms / shares.peak.high, products_ms / shares.peak.low),
        "reading weights": Range(weights_ms / shares.bandwidth.high, weights_ms / shares.bandwidth.low),
        "moving activations": Range(
            activations_ms * shares.traffic.low / shares.bandwidth.high,
            activations_ms * shares.traffic.high / shares.bandwidth.low,
        ),
        "starting kernels": Range(
            cost.kernels * shares.kernel_us.low / 1e3, cost.kernels * shares.kernel_us.high / 1e3
        ),
    }
    latency = Range(sum(part.low for part in parts.values()), sum(part.high for part in parts.values()))
    return Estimate(batch, latency, max(parts, key=lambda name: parts[name].low + parts[name].high))
