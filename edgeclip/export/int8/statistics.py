"""What NNCF wants to know of a graph's activations in; the same, with no image run twice, out.

NNCF collects statistics before each step of its pipeline (SmoothQuant; then ranges and biases): every image is run,
each activation of interest is reduced (its extremes, quantiles, a histogram, means of channels), and the reduced values
of all images are put together. Here each image's reduced values are kept
(``export/int8/statistics.py``), under the graph as it is at that step, what is measured, and the image;
NNCF's own code puts them together as ever. So what comes out is, bit for bit, what it is without a cache.

The graph is run without ONNX Runtime's optimiser: which nodes it fuses, and so the last bits of what they give, depends
on which values are asked for, and other recipes ask for others.

Digests of calibration images and what was measured on them in, files of records that a killed process resumes, out.

A store is one file, for one graph: to each image belong small arrays by name, such as the least and largest value of an
activation. A record is appended as soon as its image has been run, under a lock. Its header and its content carry
checksums that are keyed by what the store is for. A torn or damaged header ends the file for whoever reads, and is cut
off by whoever appends next; a record whose content does not match counts as absent, so that its image is run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.devices.machine.probe import describe_machine
from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.files import cache_dir, sha256_file, sha256_json

Values = dict[bytes, npt.NDArray[Any]]

LIMIT_BYTES = 4 << 30
_FOLDER = "activation-statistics"
_CHECK_BYTES = 16
_HEADER = struct.Struct("<32sQ")  # the image's digest; bytes of content
_HEADER_BYTES = _HEADER.size + _CHECK_BYTES


class StatisticsStore:
    """What was measured on images, by their digest. Several processes may read and add at once.

    Args:
        path: the file; made with its folder when the first record is added.
        key: hex sha256 of all that decides a value besides the image and the value's name.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, bytes.fromhex(key)
        self._at: dict[bytes, list[tuple[int, int]]] = {}  # digest -> where its contents begin, and their bytes
        self._end = 0
        if path.is_file():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
                self._scan(stream)
                os.utime(path)  # used just now: see open_store

    def get(self, digest: bytes) -> Values:
        """All that can be trusted of what was measured on an image; empty if it has not been run."""
        found: Values = {}
        places = self._at.get(digest, [])
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            stream = stack.enter_context(self._path.open("rb")) if places else None
            for start, size in places:
                assert stream is not None
                content = os.pread(stream.fileno(), size, start)
                check, packed = content[:_CHECK_BYTES], content[_CHECK_BYTES:]
                if self._check(digest, packed) == check:
                    found |= _unpack(packed)
        return found

    def add(self, digest: bytes, values: Mapping[bytes, npt.NDArray[Any]]) -> None:
        """Append what was measured on an image, in one write.

        Raises:
            InputError: it cannot be written.
        """
        packed = _pack(values)
        size = _CHECK_BYTES + len(packed)
        header = _HEADER.pack(digest, size)
        record = b"".join([header, self._check(b"header", header), self._check(digest, packed), packed])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                self._scan(stream)
                stream.truncate(self._end)
                stream.write(record)
        except OSError as error:
            raise InputError(
                f"cannot write {self._path} ({error.strerror}): free space there, or set EDGECLIP_CACHE"
            ) from error
        self._note(digest, self._end + _HEADER_BYTES, size)

    def _note(self, digest: bytes, start: int, size: int) -> None:
        self._at.setdefault(digest, []).append((start, size))
        self._end = start + size

    def _scan(self, stream: IO[bytes]) -> None:
        """Find the records from the last one known to the end of the file; all, where the file was cut or made anew."""
        length = os.fstat(stream.fileno()).st_size
        if length < self._end:
            self._at, self._end = {}, 0
        while length >= self._end + _HEADER_BYTES:
            found = os.pread(stream.fileno(), _HEADER_BYTES, self._end)
            header = found[: _HEADER.size]
            digest, size = _HEADER.unpack(header)
            start = self._end + _HEADER_BYTES
            if found[_HEADER.size :] != self._check(b"header", header) or start + size > length:
                return
            self._note(digest, start, size)

    def _check(self, *parts: bytes) -> bytes:
        return hashlib.blake2b(b"".join(parts), digest_size=_CHECK_BYTES, key=self._key).digest()


def open_store(kind: str, graph: str, *versions: str) -> StatisticsStore:
    """The store of what is measured on one graph on this machine, in the cache.

    Before, the stores are cut down to ``LIMIT_BYTES`` together: those used longest ago go first.

    Args:
        kind: what is measured.
        graph: hex sha256 of the graph and its weights.
        versions: of the libraries that measure.
    """
    machine = describe_machine()
    key = sha256_json([kind, graph, versions, np.__version__, machine["architecture"], machine.get("cpu")])
    folder = cache_dir(_FOLDER)
    path = folder / f"{key}.records"
    _make_room(folder, first=path)
    return StatisticsStore(path, key)


def image_digest(image: npt.NDArray[np.float32]) -> bytes:
    """The sha256 that a preprocessed image's records are kept under; its shape is part of it."""
    return hashlib.sha256(
        repr((image.shape, image.dtype.str)).encode() + np.ascontiguousarray(image).tobytes()
    ).digest()


def _make_room(folder: Path, *, first: Path) -> None:
    """Delete what was used longest ago, as far as ``LIMIT_BYTES`` are exceeded; ``first`` counts as used just now."""
    found = []
    for path in folder.glob("*.records"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room too
            used = path.stat()
            found.append((path == first, used.st_mtime_ns, used.st_size, path))
    room = LIMIT_BYTES
    for *_, size, path in sorted(found, reverse=True):
        room -= size
        if room < 0:
            path.unlink(missing_ok=True)


def _pack(values: Mapping[bytes, npt.NDArray[Any]]) -> bytes:
    """Arrays as one string; counts shrink to a tenth, floats do not shrink."""
    rows = []
    for name, value in values.items():
        raw = value.tobytes()
        rows.append((name, value.dtype.str, value.shape, zlib.compress(raw, 1) if value.dtype.kind == "i" else raw))
    return msgspec.msgpack.encode(rows)


def _unpack(packed: bytes) -> Values:
    rows = msgspec.msgpack.decode(packed, type=list[tuple[bytes, str, tuple[int, ...], bytes]])
    return {
        name: np.frombuffer(zlib.decompress(raw) if np.dtype(dtype).kind == "i" else raw, dtype).reshape(shape)
        for name, dtype, shape, raw in rows
    }


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
