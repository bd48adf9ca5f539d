"""What a plan is made of, as data: what is asked of a device, each variant's outlook there, the whole."""

from __future__ import annotations

from dataclasses import dataclass

from edgeclip.devices.plan.cost import GraphCost
from edgeclip.devices.plan.memory import VariantMemory
from edgeclip.devices.plan.speed import Estimate, Range
from edgeclip.errors import InputError


@dataclass(frozen=True)
class Demand:
    """What is asked of the device.

    Attributes:
        cameras: streams that are labelled at once.
        fps: frames of each camera that are labelled a second; None: as many as will go.
        batch: images at once; None: one of each camera, at most 8, on a GPU, and 1 on a CPU.
        jetpack: release on a Jetson; None for the newest that edgeclip runs on.
        mode: power mode of a Jetson; None for the one that the profile is in, or the factory default.
        mode_why: where the mode comes from, in words, if not from whoever asks.
        memory_gib: memory that is free for the model, GiB; None for what the device is sold with less its system.
        cores, ghz: of a CPU, whose peaks depend on them.
        engine: what runs it, a name of ``edgeclip.engine_list``, or ``pytorch`` or ``pytorch-eager`` for comparison;
            None for TensorRT on a GPU and OpenVINO on a CPU.

    Raises:
        InputError: a value that is not above zero.
    """

    cameras: int = 1
    fps: float | None = None
    batch: int | None = None
    jetpack: str | None = None
    memory_gib: float | None = None
    cores: int | None = None
    ghz: float | None = None
    mode: str | None = None
    mode_why: str | None = None
    engine: str | None = None

    def __post_init__(self) -> None:
        for name in ("cameras", "fps", "batch", "memory_gib", "cores", "ghz"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"expected {name.replace('_', ' ')} above 0, got {value}")

    @property
    def images_per_s(self) -> float | None:
        """Images to label a second, all cameras together."""
        return None if self.fps is None else self.cameras * self.fps


@dataclass(frozen=True)
class VariantPlan:
    """One variant on the device.

    Attributes:
        refused: why it cannot run there; None if it can. What follows is then absent.
        wise: whether it pays there, and ``why``.
        memory: what it takes.
        fits: whether that is free; None where it is not known what is.
        estimate: of its speed; None where the profile has no peak of its precision.
        reach: whether the demand is met: ``yes``, ``perhaps`` (its range holds the demand: measure), ``no``; None
            where nothing was asked or nothing is known.
    """

    name: str
    precision: str
    refused: str | None = None
    wise: bool = False
    why: str = ""
    memory: VariantMemory | None = None
    fits: bool | None = None
    estimate: Estimate | None = None
    reach: str | None = None

    @property
    def usable(self) -> bool:
        """Whether it may run there and its memory is not known to be missing."""
        return self.refused is None and self.fits is not False


@dataclass(frozen=True)
class ModeFigures:
    """What a power mode makes of a device.

    Attributes:
        name: of the mode.
        why: where it comes from, and of which configuration it is, in words.
        peak_tflops: precision → its peak there, dense, in 1e12 operations a second; empty where its clocks are not
            known.
        bandwidth_gb_s: of the memory.
        images_per_s: variant → what to expect there, for those whose speed is known.
    """

    name: str
    why: str
    peak_tflops: dict[str, float]
    bandwidth_gb_s: float | None
    images_per_s: dict[str, Range]


@dataclass(frozen=True)
class Plan:
    """What to expect of an encoder on a device, before either has met.

    Attributes:
        device, title: the profile's.
        release: of JetPack, on a Jetson.
        free_bytes: memory free for the model; None where it is not known.
        variants: the most exact first.
        recommended: name of the most exact variant that pays and meets the demand for certain; else, of those that
            pay, the one expected to be fastest; None where none can run.
        verdict: one sentence.
        recipe: commands, in order; none for an engine that takes a bundle as it is.
        notes: what its owner should know.
        mode: power mode that all this holds in, on a Jetson whose modes are known.
        beside: the modes without a budget, or the fastest, where they are faster.
        engine: what its speeds are of.
    """

    device: str
    title: str
    demand: Demand
    cost: GraphCost
    release: str | None
    free_bytes: int | None
    variants: tuple[VariantPlan, ...]
    recommended: str | None
    verdict: str
    recipe: tuple[str, ...]
    notes: tuple[str, ...]
    mode: ModeFigures | None = None
    beside: tuple[ModeFigures, ...] = ()
    engine: str = ""

    def variant(self, name: str) -> VariantPlan:
        """The plan of one variant."""
        return next(each for each in self.variants if each.name == name)
