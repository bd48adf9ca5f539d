"""Published latencies in; what each engine reaches of a device's peaks, and how far off that is where it had not
looked, out.

    python tools/fit_latency.py [--write] [--plot docs/results/latency-fit.png]

Fits the shares of ``edgeclip/devices/plan/shares.toml`` to ``tests/devices/published.toml``: every engine's are those
of all engines of the kind of devices, and a deviation; both are held near what is physically likely, so that few
figures bend them little. On GPUs each architecture is slower or faster by one factor. Prints the fit and, for every
latency, what is estimated when its device, and when its model, was left out. ``--write`` replaces the shares.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from edgeclip.devices.plan.speed import SHARES, SHARES_OF, Shares, device_of, ideal_ms
from edgeclip.files import write_text
from tests.devices.published import Latency, published_latencies

Floats = npt.NDArray[np.float64]

NAMES = ("matrix", "int8", "depthwise", "bandwidth", "attention_traffic", "depthwise_traffic", "kernel_us")
# What is likely before anything was measured, and within what factor, for all engines of a kind together. Products
# reach half of the peak, memory four fifths; depthwise convolutions a tenth of plain arithmetic, and move their numbers
# twice; caches keep half of attention's, on CPUs more.
_LIKELY = {"gpu": (0.5, 0.9, 0.1, 0.8, 0.5, 2.0, 8.0), "cpu": (0.5, 0.8, 0.2, 0.5, 0.3, 1.0, 10.0)}
_LIKELY_WITHIN = (0.4, 0.2, 0.7, 0.2, 0.5, 0.7, 0.7)  # natural logarithms
_ENGINE_WITHIN = (0.35, 0.2, 0.4, 0.2, 0.4, 0.4, 0.5)
# Engines that run a graph operator by operator start three kernels where TensorRT and a compiler start one.
_MORE_KERNELS = {"onnxruntime-cuda": 3.0, "pytorch-eager": 3.0}
_ARCHITECTURE_WITHIN = 0.2
_LATENCY_WITHIN = 0.25
_QUANTILE = 0.8
_COPY_MB_S = 12_000.0  # images in FP32 from pageable memory over PCIe
_WIDEST = 3.0


@dataclass(frozen=True)
class Fit:
    """Logarithms of shares of all engines together, each engine's deviations, and each architecture's slowness."""

    pooled: Floats  # (P,)
    engines: Floats  # (E, P)
    architectures: Floats  # (A,)

    @property
    def flat(self) -> Floats:
        """All of them in a row."""
        return np.concatenate([self.pooled, self.engines.ravel(), self.architectures])


@dataclass(frozen=True)
class Held:
    """What is estimated of a latency: by the fit of all, without its device, without its model; each divided by what
    was measured. And without its device, then calibrated by other models that were measured there."""

    latency: Latency
    fitted: float
    without_device: float
    without_model: float
    calibrated: float | None

    @property
    def error(self) -> float:
        """The larger of both errors of what was left out, a factor above 1."""
        return math.exp(max(abs(math.log(self.without_device)), abs(math.log(self.without_model))))


class Latencies:
    """Latencies of one kind of devices, as arrays."""

    def __init__(self, latencies: Sequence[Latency], kind: str) -> None:
        self.kind, self.latencies = kind, [each for each in latencies if _kind(each) == kind]
        engines = [SHARES_OF[each.engine] for each in self.latencies]
        self.engines = sorted(set(engines))
        self.architectures = sorted({each.profile.architecture for each in self.latencies}) if kind == "gpu" else []
        self._engine = np.array([self.engines.index(each) for each in engines])
        self._architecture = np.array(
            [self.architectures.index(each.profile.architecture) for each in self.latencies] if kind == "gpu" else []
        ).astype(int)
        self._ideal = np.array([_ideal(each) for each in self.latencies])  # (N, 7)
        self._int8 = np.array([each.precision == "int8" for each in self.latencies])
        self._copied_ms = np.array([_copied_ms(each) for each in self.latencies])
        self._measured = np.log([each.ms for each in self.latencies])
        found = Counter(map(device_key, self.latencies))
        self._weight = np.array([found[device_key(each)] ** -0.5 for each in self.latencies])
        self._weight /= np.sqrt(np.mean(self._weight**2))
        self._more = np.zeros((len(self.engines), len(NAMES)))
        self._more[:, NAMES.index("kernel_us")] = [math.log(_MORE_KERNELS.get(name, 1.0)) for name in self.engines]

    def log_ratios(self, fit: Fit) -> Floats:
        """Logarithms of estimated by measured latencies, (N,)."""
        by_engine = np.exp(fit.pooled + fit.engines)
        table = np.array([[_shares(row).factors(name) for name in ("fp16", "int8")] for row in by_engine])  # (E, 2, 7)
        estimated = (self._ideal * table[self._engine, self._int8.astype(int)]).sum(1)
        slowness = fit.architectures[self._architecture] if self.architectures else 0.0
        return np.asarray(np.log(estimated * np.exp(slowness) + self._copied_ms) - self._measured)

    def fit(self, keep: npt.NDArray[np.bool_] | None = None, near: Fit | None = None) -> Fit:
        """The likeliest shares, by the latencies that are kept; sought from ``near`` on, which saves time."""
        keep = np.ones(len(self.latencies), bool) if keep is None else keep
        likely = np.log(_LIKELY[self.kind])
        scale = self._weight / _LATENCY_WITHIN

        def residuals(flat: Floats) -> Floats:
            fit = self._unflattened(flat)
            return np.concatenate(
                [
                    (self.log_ratios(fit) * scale)[keep],
                    (fit.pooled - likely) / _LIKELY_WITHIN,
                    ((fit.engines - self._more) / _ENGINE_WITHIN).ravel(),
                    fit.architectures / _ARCHITECTURE_WITHIN,
                ]
            )

        start = near or Fit(likely, self._more, np.zeros(len(self.architectures)))
        return self._unflattened(least_squares(residuals, start.flat, loss="soft_l1", ftol=1e-5).x)

    def _unflattened(self, flat: Floats) -> Fit:
        some, all_of_them = len(NAMES), len(NAMES) * (1 + len(self.engines))
        return Fit(flat[:some], flat[some:all_of_them].reshape(len(self.engines), some), flat[all_of_them:])

    def held(self) -> list[Held]:
        """Every latency, estimated without its device and without its model."""
        of_all = self.fit()
        fitted = self.log_ratios(of_all)
        device = self._without(device_key, of_all)
        model = self._without(lambda each: each.model, of_all)
        return [
            Held(each, *(float(np.exp(found[at])) for found in (fitted, device, model)), self._calibrated(at, device))
            for at, each in enumerate(self.latencies)
        ]

    def _without(self, key: Callable[[Latency], str], of_all: Fit) -> Floats:
        keys = np.array([key(each) for each in self.latencies])
        ratios = np.zeros(len(keys))
        for each in sorted(set(keys)):
            ratios[keys == each] = self.log_ratios(self.fit(keys != each, of_all))[keys == each]
        return ratios

    def _calibrated(self, at: int, ratios: Floats) -> float | None:
        this = self.latencies[at]
        others = [
            ratio
            for each, ratio in zip(self.latencies, ratios, strict=True)
            if (device_key(each), each.engine, each.precision) == (device_key(this), this.engine, this.precision)
            and each.model != this.model
        ]
        return math.exp(ratios[at] - float(np.mean(others))) if others else None


def _kind(latency: Latency) -> str:
    return "cpu" if latency.profile.kind == "cpu" else "gpu"


def device_key(latency: Latency) -> str:
    """A device, in whatever power mode; CPUs of one profile are told apart by their cores."""
    return latency.profile.name + (f" of {latency.cores} cores" if latency.cores else "")


def family(latency: Latency) -> str:
    """Whether it is a model of attention, or of convolutions with a little of it at most."""
    work = latency.cost.work
    matrix, attention, convolution = (
        work[kind].kernels if kind in work else 0 for kind in ("matrix", "attention", "convolution")
    )
    return "ViT" if matrix + attention > convolution else "convolutions"


def _ideal(latency: Latency) -> tuple[float, ...]:
    device = device_of(latency.profile, latency.precision, latency.engine, cores=latency.cores, ghz=latency.ghz)
    if device is None:
        raise SystemExit(f"{latency}: its device has no peak of that precision")
    return ideal_ms(latency.cost, latency.precision, device, latency.batch)


def _copied_ms(latency: Latency) -> float:
    numbers = latency.batch * 3 * math.prod(latency.cost.image_size)
    return 4 * numbers / (_COPY_MB_S * 1e3) if latency.copied else 0.0


def _shares(values: Floats, **errors: float) -> Shares:
    return Shares(**dict(zip(NAMES, (float(value) for value in values), strict=True)), **errors)


def quantile(errors: Sequence[float], weights: Sequence[float], part: float = _QUANTILE) -> float:
    """The smallest error that at least a part of the weight does not exceed."""
    order = np.argsort(errors)
    reached = np.cumsum(np.array(weights)[order]) / sum(weights)
    return float(np.array(errors)[order][np.searchsorted(reached, part - 1e-9)])


def errors_of(held: Sequence[Held]) -> dict[str, tuple[float, float]]:
    """By what the ranges of each engine are as wide as they are: not calibrated, and calibrated.

    The largest of three quantiles: over all latencies of the kind of devices, over these with every device counting the
    same, and over those of the engine.
    """
    some = [each for each in held if each.calibrated is not None]
    calibrated = _error(some, [math.exp(abs(math.log(each.calibrated or 1.0))) for each in some])
    error = _error(held, [each.error for each in held])
    found = {}
    for engine in _engines(held):
        own = [each.error for each in held if each.latency.engine == engine]
        widest = max(error, quantile(own, [1.0] * len(own)))
        found[engine] = widest, min(widest, calibrated)
    return found


def _error(held: Sequence[Held], errors: Sequence[float]) -> float:
    """The larger of two quantiles: every latency counts the same, or every device does."""
    found = Counter(device_key(each.latency) for each in held)
    by_device = quantile(errors, [1 / found[device_key(each.latency)] for each in held])
    return max(by_device, quantile(errors, [1.0] * len(errors)))


def is_inside(ratio: float, engine: str, errors: dict[str, tuple[float, float]]) -> bool:
    """Whether an estimate's range holds what was measured."""
    return abs(math.log(ratio)) <= math.log(errors[engine][0]) + 1e-9


def toml_of(fits: dict[str, tuple[Latencies, Fit, dict[str, tuple[float, float]]]]) -> str:
    """The text of ``shares.toml``."""
    lines = [
        "# Written by `python tools/fit_latency.py --write`, fitted to tests/devices/published.toml; what each figure",
        "# is stands in speed.py, and how far off it is in docs/results/latency-fit.txt.",
    ]
    for kind, (latencies, fit, errors) in fits.items():
        for name, values in zip(latencies.engines, np.exp(fit.pooled + fit.engines), strict=True):
            lines += [
                "",
                f"[{kind}.{name}]",
                *(f"{key} = {value:.4g}" for key, value in zip(NAMES, values, strict=True)),
            ]
            lines += [f"error = {errors[name][0]:.3f}", f"calibrated_error = {errors[name][1]:.3f}"]
    lines += ["", "[architectures]"]
    for latencies, fit, _ in fits.values():
        found = zip(latencies.architectures, np.exp(fit.architectures), strict=True)
        lines += [f'"{name}" = {slowness:.4g}' for name, slowness in found]
    return "\n".join(lines) + "\n"


def show(held: Sequence[Held]) -> None:
    """Print every latency, those outside their range marked, and how far off estimates are by engine and by family."""
    errors = errors_of(held)
    print("estimated by measured: fitted to all, without its device, without its model")
    for each in held:
        outside = "" if is_inside(each.without_device, each.latency.engine, errors) else " outside"
        print(
            f"  {each.latency!s:62} {each.latency.ms:9.2f} ms  {each.fitted:5.2f} {each.without_device:5.2f} "
            f"{each.without_model:5.2f}{outside}"
        )
    groups = {engine: [each for each in held if each.latency.engine == engine] for engine in _engines(held)}
    for name in ("ViT", "convolutions"):
        groups[name] = [each for each in held if family(each.latency) == name]
    print(f"{'off by, median and 80 %':26} {'n':>3}  fitted         without its device          without its model")
    for name, some in {**groups, "all": list(held)}.items():
        figures = [_summary(some, which, errors) for which in ("fitted", "without_device", "without_model")]
        print(f"  {name:24} {len(some):3}  " + "   ".join(figures))


def _engines(held: Sequence[Held]) -> list[str]:
    return sorted({each.latency.engine for each in held})


def _summary(held: Sequence[Held], which: str, errors: dict[str, tuple[float, float]]) -> str:
    ratios = [getattr(each, which) for each in held]
    off = [math.exp(abs(math.log(ratio))) for ratio in ratios]
    inside = np.mean([is_inside(ratio, each.latency.engine, errors) for ratio, each in zip(ratios, held, strict=True)])
    return f"{np.median(off) - 1:4.0%} ×{np.quantile(off, _QUANTILE):.2f} {inside:4.0%} inside"


def plot(held: dict[str, list[Held]], path: Path) -> None:
    """Estimates without their device over what was measured, by engine, with the ranges."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(held), figsize=(6.2 * len(held), 5.6), squeeze=False)
    for axis, (kind, rows) in zip(axes[0], held.items(), strict=True):
        found = [error for error, _ in errors_of(rows).values()]
        error, widest = min(found), max(found)
        ends = np.array([min(each.latency.ms for each in rows) / 2, max(each.latency.ms for each in rows) * 2])
        axis.fill_between(
            ends, ends / error, ends * error, color="0.9", label=f"range, ÷ and × {error:.2f} to {widest:.2f}"
        )
        axis.plot(ends, ends, color="0.6", linewidth=0.8)
        for engine, marker in zip(_engines(rows), "osD^v", strict=False):
            for name, filled in (("ViT", True), ("convolutions", False)):
                some = [each for each in rows if each.latency.engine == engine and family(each.latency) == name]
                axis.plot(
                    [each.latency.ms for each in some],
                    [each.latency.ms * each.without_device for each in some],
                    marker,
                    color=f"C{_engines(rows).index(engine)}",
                    fillstyle="full" if filled else "none",
                    markersize=5,
                    label=f"{engine}, {name}" if some else None,
                )
        axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, ms a batch")
        axis.set(ylabel="estimated without its device, ms a batch", title=f"{kind.upper()}s, {len(rows)} latencies")
        axis.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Fit, print, and on demand write the shares and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the planner's shares")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    held: dict[str, list[Held]] = {}
    fits: dict[str, tuple[Latencies, Fit, dict[str, tuple[float, float]]]] = {}
    for kind in ("gpu", "cpu"):
        latencies = Latencies(published_latencies(), kind)
        held[kind] = latencies.held()
        fits[kind] = (latencies, latencies.fit(), errors_of(held[kind]))
        devices = {*map(device_key, latencies.latencies)}
        print(f"\n{kind.upper()}s: {len(held[kind])} latencies of {len(devices)} devices")
        show(held[kind])
        for engine, (error, calibrated) in fits[kind][2].items():
            print(f"range of {engine}: ÷ and × {error:.2f}, {error**2:.2f} wide; calibrated: ÷ and × {calibrated:.2f}")
            if error**2 > _WIDEST:
                raise SystemExit(f"expected ranges at most {_WIDEST:g} wide, got {error**2:.2f}: that says too little")
    everything = [each for rows in held.values() for each in rows]
    off = [math.exp(abs(math.log(each.without_device))) for each in everything]
    inside = [is_inside(each.without_device, each.latency.engine, fits[_kind(each.latency)][2]) for each in everything]
    median = np.median(off) - 1
    print(f"\nall {len(off)} without their device: off by {median:.0%} in the median, {np.mean(inside):.0%} inside")
    text = toml_of(fits)
    print(f"\n{text}", end="")
    if arguments.write:
        write_text(SHARES, text)
    if arguments.plot:
        plot(held, arguments.plot)


if __name__ == "__main__":
    main()
