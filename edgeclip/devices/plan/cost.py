"""What one image costs an encoder's graph, as data: products, weights, activations. Read on devices, without ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

from edgeclip.documents import read_json
from edgeclip.errors import BundleError
from edgeclip.files import write_json

FILE = "reports/cost.json"

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
# What operators run on: matrix units, the second with numbers that stay in 8 bits where products are, the third with
# scores that are written and read again; plain arithmetic, little of it for each number read; nothing but memory.
WorkKind: TypeAlias = Literal["matrix", "convolution", "attention", "depthwise", "other"]


class Work(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all operators of one kind ask of a device for one image.

    Attributes:
        kernels: how many there are.
        macs: their multiply–accumulates.
        traffic: numbers that they read, weights aside, and write.
    """

    kernels: _Count
    macs: _Count
    traffic: _Count


class GraphCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an image encoder's graph asks of a device, whatever its precision.

    Attributes:
        image_size: (height, width) in pixels.
        macs: multiply–accumulates of one image in convolutions and matrix products.
        weights: numbers in the graph that were learned.
        activation_peak: most numbers that are alive at once for one image, when nothing is fused: an upper bound.
        activation_traffic: numbers that the operators which are not fused away read and write for one image.
        kernels: operators that an engine runs as a kernel each, element-wise ones counted as fused.
        operators: ONNX operator types in the graph, each with how often it is there, sorted.
        work: by kind: products with weights (``matrix``), convolutions, products of activations and their softmax
            (``attention``), convolutions in groups (``depthwise``), norms, pooling and sums (``other``). What moves or
            changes single numbers joins its neighbours. Empty where an export of before counted none.
    """

    image_size: tuple[int, int]
    macs: _Count
    weights: _Count
    activation_peak: _Count
    activation_traffic: _Count
    kernels: _Count
    operators: dict[str, int]
    work: dict[WorkKind, Work] = {}

    @property
    def by_kind(self) -> dict[WorkKind, Work]:
        """``work``; where none was counted, all of it as products with weights."""
        return self.work or {"matrix": Work(kernels=self.kernels, macs=self.macs, traffic=self.activation_traffic)}

    def save(self, folder: Path) -> None:
        """Write the cost into a bundle's folder."""
        write_json(folder / FILE, self)


def load_cost(folder: Path) -> GraphCost | None:
    """The cost that the export wrote into a bundle's folder; None in a bundle of before there was one.

    Raises:
        BundleError: the file is not what the export writes.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return read_json(path, GraphCost, error=BundleError)
    except BundleError as error:
        raise BundleError(f"expected the cost of a graph, got: {error}; export the bundle again") from error
