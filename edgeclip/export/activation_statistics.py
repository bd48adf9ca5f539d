"""What NNCF wants to know of a graph's activations in; the same, with no image run twice, out.

NNCF collects statistics before each step of its pipeline (SmoothQuant; then ranges and biases): every image is run,
each activation of interest is reduced (its extremes, quantiles, a histogram, means of channels), and the reduced values
of all images are put together. Here each image's reduced values are kept
(:mod:`edgeclip.calibration.statistics_store`), under the graph as it is at that step, what is measured, and the image;
NNCF's own code puts them together as ever. So what comes out is, bit for bit, what it is without a cache.

The graph is run without ONNX Runtime's optimiser: which nodes it fuses, and so the last bits of what they give, depends
on which values are asked for, and other recipes ask for others.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeclip.calibration.statistics_store import StatisticsStore, Values, image_digest, open_store
from edgeclip.extras import require
from edgeclip.files import sha256_file

Array = npt.NDArray[Any]
Progress = Callable[[str], None]

_NAME_BYTES = 16


@contextlib.contextmanager
def kept_statistics(weights: Path, *, progress: Progress | None = None) -> Iterator[None]:
    """Let ``nncf.quantize`` on an ONNX graph take what it can from the cache, as long as this lasts.

    Args:
        weights: the file that holds the weights that are not in the graph itself.
        progress: called with a short sentence before an image is run.
    """
    pipelines = require("nncf.quantization.algorithms.pipeline", purpose="quantize")
    original = pipelines.collect_statistics
    weights_digest = sha256_file(weights)

    def collect(containers: Any, model: Any, graph: Any, dataset: Any) -> Any:
        points = _merged(containers)
        images = [item["image"] for item in dataset.get_inference_data()]
        branches = list(_branches(points, model, graph))
        versions = [require(name, purpose="quantize").__version__ for name in ("nncf", "onnxruntime")]
        store = open_store("nncf", _graph_digest(model, weights_digest), *versions)
        probe = _Probe(model, [branch.edge for branch in branches], weights.parent)
        _collect(branches, images, store, probe, progress)
        return points

    pipelines.collect_statistics = collect
    try:
        yield
    finally:
        pipelines.collect_statistics = original


def _merged(containers: Any) -> Any:
    """All statistic points in one container, as NNCF's own function gives them back."""
    points = require("nncf.common.tensor_statistics.statistic_point", purpose="quantize").StatisticPointsContainer()
    for container in containers if isinstance(containers, list) else [containers]:
        for listed in container.values():
            for point in listed:
                points.add_statistic_point(point)
    return points


def _collect(
    branches: list[_Branch], images: list[Array], store: StatisticsStore, probe: _Probe, progress: Progress | None
) -> None:
    """Feed every branch with what it wants of each image, in the order of the images."""
    for number, image in enumerate(images, 1):
        digest = image_digest(image)
        known = store.get(digest)
        wanted = [branch for branch in branches if not branch.full]
        if missing := [branch for branch in wanted if not branch.knows(known)]:
            if progress:
                progress(f"measuring activations, image {number} of {len(images)}")
            values = probe.run(image, {branch.edge for branch in missing})
            measured: Values = {}
            for branch in missing:
                branch.measure(values[branch.edge], measured)
            store.add(digest, measured)
            known |= measured
        for branch in wanted:
            branch.feed(known)


class _Branch(Protocol):
    """One value that NNCF takes of every image, or of the first only, and what it puts them together with."""

    edge: str

    @property
    def full(self) -> bool:
        """Whether it has had as many images as it takes."""
        ...

    def knows(self, known: Mapping[bytes, Array]) -> bool:
        """Whether what was measured before is all that it takes."""
        ...

    def measure(self, value: Array, into: Values) -> None:
        """Reduce the activation."""
        ...

    def feed(self, known: Mapping[bytes, Array]) -> None:
        """Hand one image's reduced value to NNCF."""
        ...


@dataclass
class _Reduced:
    """A value that depends on the image alone."""

    edge: str
    reducer: Any
    port: int
    aggregator: Any
    fed: int = 0

    def __post_init__(self) -> None:
        self.name = _name(self.edge, type(self.reducer).__name__, sorted(vars(self.reducer).items()), self.port)

    @property
    def full(self) -> bool:
        return self.aggregator.num_samples is not None and self.fed >= self.aggregator.num_samples

    def knows(self, known: Mapping[bytes, Array]) -> bool:
        return self.name in known

    def measure(self, value: Array, into: Values) -> None:
        if self.name not in into:  # other algorithms ask for the same
            into[self.name] = np.asarray(self.reducer([_tensor(value)])[self.port].data)

    def feed(self, known: Mapping[bytes, Array]) -> None:
        self.aggregator.register_reduced_input(_tensor(known[self.name]))
        self.fed += 1


@dataclass
class _Histogram:
    """A histogram over the range of this image and all before it, as NNCF's ``HistogramAggregator`` adds them up.

    The range is part of the name: the same image after others is counted anew where they widen the range.
    """

    edge: str
    aggregator: Any
    fed: int = 0

    def __post_init__(self) -> None:
        self.name = _name(self.edge, "extremes")

    @property
    def full(self) -> bool:
        return self.aggregator.num_samples is not None and self.fed >= self.aggregator.num_samples

    def knows(self, known: Mapping[bytes, Array]) -> bool:
        return self.name in known and self._counts(*self._range(known)) in known

    def measure(self, value: Array, into: Values) -> None:
        into[self.name] = np.array([value.min(), value.max()], np.float64)
        low, high = self._range(into)
        into[self._counts(low, high)] = np.histogram(value, self.aggregator.bins, range=(low, high))[0]

    def feed(self, known: Mapping[bytes, Array]) -> None:
        found = self.aggregator
        low, high = self._range(known)
        counts = _tensor(known[self._counts(low, high)])
        if self.fed:
            counts = found._combine_histograms(found.histogram, found.min_val, found.max_val, counts, low, high)
        found.histogram, found.min_val, found.max_val = counts, low, high
        found._collected_samples += 1
        self.fed += 1

    def _range(self, known: Mapping[bytes, Array]) -> tuple[float, float]:
        low, high = (float(value) for value in known[self.name])
        return (min(self.aggregator.min_val, low), max(self.aggregator.max_val, high)) if self.fed else (low, high)

    def _counts(self, low: float, high: float) -> bytes:
        return _name(self.edge, "counts", self.aggregator.bins, low, high)


def _branches(points: Any, model: Any, graph: Any) -> Iterator[_Branch]:
    """What the algorithms want, one by one; some want the same of one activation."""
    collectors = require("nncf.common.tensor_statistics.collectors", purpose="quantize")
    nodes = {node.name: node for node in model.graph.node}
    inputs = require("nncf.onnx.graph.node_utils", purpose="quantize").get_input_edges_mapping(graph)
    for _algorithm, point, collector in points.get_tensor_collectors():
        edge = _edge(point.target_point, nodes, inputs)
        reducers = {hash(reducer): reducer for reducer in collector.reducers}
        for (reducer, port, _), aggregator in collector.aggregators.items():
            if isinstance(aggregator, collectors.HistogramAggregator):
                yield _Histogram(edge, aggregator)
            else:
                yield _Reduced(edge, reducers[reducer], port, aggregator)


def _edge(target: Any, nodes: Mapping[str, Any], inputs: Any) -> str:
    """The name in the graph of the value that is looked at."""
    utils = require("nncf.onnx.graph.node_utils", purpose="quantize")
    kinds = require("nncf.common.graph.transformations.commands", purpose="quantize").TargetType
    if target.target_node_name in inputs:
        return str(utils.get_input_edge(target.target_node_name, inputs, nodes))
    node = nodes[target.target_node_name]
    return str((node.output if target.type == kinds.POST_LAYER_OPERATION else node.input)[target.port_id])


class _Probe:
    """A graph that gives the values of its edges; loaded when the first image is run."""

    def __init__(self, model: Any, edges: Iterable[str], weights_in: Path) -> None:
        self._model, self._weights_in = model, weights_in
        self._inputs = {value.name for value in model.graph.input}
        self._edges = sorted(set(edges) - self._inputs)
        self._session: Any = None

    def run(self, image: Array, edges: set[str]) -> dict[str, Array]:
        self._session = self._session or self._load()
        wanted = sorted(edges - self._inputs)
        values = self._session.run(wanted, {"image": image}) if wanted else []
        return dict(zip(wanted, values, strict=True)) | dict.fromkeys(edges & self._inputs, image)

    def _load(self) -> Any:
        onnx, ort = require("onnx", purpose="quantize"), require("onnxruntime", purpose="quantize")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._weights_in))
        outputs = self._model.graph.output
        own = len(outputs)
        named = {value.name for value in outputs}
        outputs.extend(onnx.ValueInfoProto(name=edge) for edge in self._edges if edge not in named)
        try:
            return ort.InferenceSession(self._model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        finally:
            del outputs[own:]


def _graph_digest(model: Any, weights_digest: str) -> str:
    """Of what is computed; not of the model's own metadata, which say where it lies."""
    digest = hashlib.sha256(weights_digest.encode())
    for opset in model.opset_import:
        digest.update(f"{opset.domain} {opset.version} ".encode())
    digest.update(model.graph.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _name(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=_NAME_BYTES).digest()


def _tensor(value: Array) -> Any:
    return require("nncf.tensor", purpose="quantize").Tensor(value)
