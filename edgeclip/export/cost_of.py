"""A bundle or the name of a model in, what one image costs its encoder out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from edgeclip.bundle import Bundle
from edgeclip.devices.cost import GraphCost, load_cost


def cost_of_bundle(bundle: Bundle) -> GraphCost:
    """The cost that the export wrote down; in a bundle of before it did, counted in the FP32 graph.

    Raises:
        BundleError: what was written down cannot be read.
        MissingExtraError: the graph has to be read, and the libraries for that are not installed.
    """
    if (written := load_cost(bundle.path)) is not None:
        return written
    from edgeclip.export.graph_cost import graph_cost  # torch is not loaded for what is written down

    return graph_cost(bundle.variant_path("fp32"))


def cost_of_model(name: str, *, progress: Callable[[str], None] | None = None) -> GraphCost:
    """Export a model's FP32 encoder to a temporary file and count there; weights do not matter, so none are fetched.

    Args:
        name: as for :func:`edgeclip.training.load.load_model`.
        progress: called with a short sentence before each step.

    Raises:
        ModelError: nothing of that name, or it cannot be exported.
    """
    from edgeclip.export.graph_cost import graph_cost
    from edgeclip.export.onnx_export import export_onnx
    from edgeclip.training.load import load_model, loader_of

    say = progress or (lambda _: None)
    say(f"building {name}")
    model = load_model(name, pretrained="none" if loader_of(name) == "open_clip" else None)
    say(f"exporting {name} to count its products")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fp32.onnx"
        export_onnx(model.exportable(), model.encoder, path, metadata={})
        return graph_cost(path)
