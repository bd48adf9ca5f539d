"""TensorRT and TensorRT for RTX on an NVIDIA GPU, from plans that ``edgeclip build`` made on this device.

A plan's weights are put back if they were left out, and its layers can be listed.
"""

from __future__ import annotations

import ctypes
import importlib.util
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.devices.machine.cuda import Gpu, call, cuda_runtime, find_gpu, require_gpu
from edgeclip.documents import decode_json
from edgeclip.engine_list import engine_entry
from edgeclip.errors import EngineError, InputError, MissingExtraError
from edgeclip.runtime.engines import plan_cache
from edgeclip.runtime.engines.base import Engine, FloatArray
from edgeclip.runtime.engines.plan_cache import PlanKey, read_record
from edgeclip.runtime.engines.tensorrt_api import Library, load_library, parser_errors
from edgeclip.runtime.engines.tensorrt_options import runs_on


class TensorRtEngine(Engine):
    """A TensorRT plan on the first GPU.

    Takes the plan built last of those that fit the graph, the library's version and the GPU. Batches above the plan's
    largest are split, those below its smallest are filled up. Not safe to share between threads.

    Raises:
        EngineError: there is no GPU, no fitting plan, or the plan does not load.
        MissingExtraError: the library or cuda-bindings is not installed.
    """

    name = "tensorrt"
    kinds = frozenset({"fp32", "fp16", "bf16", "int8"})

    def _load(self) -> None:
        encoder = self.encoder
        gpu = require_gpu(f"run the engine {self.name}")
        self._library = load_library(self.name)
        plan, key = find_plan(self._library, self.path, gpu)
        self._said = f"{self._library.title}, {gpu.name} ({gpu.sm}), {self.precision}"
        with ExitStack() as stack:
            # Freed in reverse: the context and its plan before the memory and the stream that they use.
            self._cuda = cuda_runtime()
            self._stream = call(self._cuda.cudaStreamCreate)
            stack.callback(call, self._cuda.cudaStreamDestroy, self._stream)
            loaded = load_plan(self._library, plan, self.path)
            engine = loaded.engine
            self._min_batch, self._max_batch = _batches(engine)
            size = encoder.preprocess
            self._input = _Buffer(self._cuda, (self._max_batch, 3, size.height, size.width), stack)
            self._output = _Buffer(self._cuda, (self._max_batch, encoder.embedding_dim), stack)
            for tensor, buffer in (("image", self._input), ("embedding", self._output)):
                got = tuple(engine.get_tensor_shape(tensor))[1:]
                if got != buffer.host.shape[1:]:
                    raise EngineError(
                        f"{plan}: expected {tensor} in rows of {buffer.host.shape[1:]}, got {got}: build it again"
                    )
            self._loaded: Any = loaded
            self._context: Any = self._make_context(engine, key, gpu)
            stack.callback(self._release)
            for tensor, buffer in (("image", self._input), ("embedding", self._output)):
                if not self._context.set_tensor_address(tensor, buffer.device):
                    raise self._library.failure(f"{self._library.title} refuses memory for {tensor}")
            self._stack = stack.pop_all()

    @classmethod
    def available(cls) -> bool:
        """Whether the library and cuda-bindings are installed and CUDA sees a GPU."""
        if importlib.util.find_spec(engine_entry(cls.name).module) is None:
            return False
        try:
            return find_gpu() is not None
        except MissingExtraError:
            return False

    @classmethod
    def versions(cls) -> dict[str, str]:
        """As the loaded library names itself: JetPack's comes without a package that pip knows."""
        return {**super().versions(), f"{cls.name} as loaded": load_library(cls.name).version}

    def describe(self) -> str:
        """``tensorrt 10.3.0, Orin (sm87), fp16, batches of 1 to 8``."""
        batches = f"{self._min_batch} to {self._max_batch}" if self._min_batch < self._max_batch else self._max_batch
        return f"{self._said}, batches of {batches}"

    def _make_context(self, engine: Any, key: PlanKey, gpu: Gpu) -> Any:  # noqa: ARG002 - for subclasses
        return self._library.make(engine.create_execution_context, "an execution context")

    def _infer(self, images: FloatArray) -> FloatArray:
        if self._context is None:
            raise EngineError(f"{self.path.name} was closed: load it again")
        embeddings = np.empty((len(images), self.encoder.embedding_dim), np.float32)
        for start in range(0, len(images), self._max_batch):
            chunk = images[start : start + self._max_batch]  # (n, 3, H, W)
            self._input.host[: len(chunk)] = chunk
            self._run(max(len(chunk), self._min_batch))
            embeddings[start : start + len(chunk)] = self._output.host[: len(chunk)]
        return embeddings

    def _run(self, batch: int) -> None:
        """Encode the first ``batch`` rows of the input buffer into the output buffer."""
        kinds = self._cuda.cudaMemcpyKind
        self._library.log.clear()
        if not self._context.set_input_shape("image", (batch, *self._input.host.shape[1:])):
            raise self._library.failure(f"{self._library.title} refuses a batch of {batch}")
        source, result = self._input, self._output
        self._copy(source.device, source.pinned, source.row_bytes * batch, kinds.cudaMemcpyHostToDevice)
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._library.failure(f"{self._library.title} failed to run {self.path.name}")
        self._copy(result.pinned, result.device, result.row_bytes * batch, kinds.cudaMemcpyDeviceToHost)
        call(self._cuda.cudaStreamSynchronize, self._stream)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        call(self._cuda.cudaMemcpyAsync, target, source, size, kind, self._stream)

    def _release(self) -> None:
        self._context = None
        self._loaded = None

    def close(self) -> None:
        """Release the plan and its memory."""
        super().close()
        self._stack.close()


class TensorRtRtxEngine(TensorRtEngine):
    """A TensorRT for RTX plan on the first GPU.

    The library compiles kernels for the GPU when a plan is first used; they are kept in the cache for the next time.
    """

    name = "tensorrt-rtx"

    def _make_context(self, engine: Any, key: PlanKey, gpu: Gpu) -> Any:
        self._kernels_place = {"engine": key.engine, "library_version": self._library.version, "device": gpu.sm}
        self._kernels_kind = f"kernels-{key.digest[:16]}"
        config = self._library.make(engine.create_runtime_config, "a runtime configuration")
        self._kernels: Any = self._library.make(config.create_runtime_cache, "a runtime cache")
        self._kernels_kept = plan_cache.load_side_cache(self._kernels_kind, **self._kernels_place)
        if self._kernels_kept:
            self._kernels.deserialize(self._kernels_kept)  # refuses what does not fit here, and then starts empty
        if not config.set_runtime_cache(self._kernels):
            raise self._library.failure(f"{self._library.title} refuses its runtime cache")
        return self._library.make(lambda: engine.create_execution_context(config), "an execution context")

    def _release(self) -> None:
        kernels = bytes(self._kernels.serialize())
        if kernels != self._kernels_kept:
            plan_cache.save_side_cache(self._kernels_kind, kernels, **self._kernels_place)
        super()._release()
        self._kernels = None


def find_plan(library: Library, onnx: Path, gpu: Gpu) -> tuple[Path, PlanKey]:
    """The plan of a graph built last that runs with this library on this GPU.

    Raises:
        EngineError: there is none.
    """
    for record in plan_cache.records(library.name, plan_cache.graph_sha256(onnx)):
        if runs_on(record.key, library, gpu) and (path := plan_cache.find(record.key)):
            return path, record.key
    raise EngineError(
        f"no plan of {onnx.name} for {library.title} on {gpu.name}: run edgeclip build {onnx.parent.parent} "
        f"--engine {library.name} --variant {onnx.stem}"
    )


@dataclass(frozen=True)
class LoadedPlan:
    """An engine and the runtime that must outlive it."""

    engine: Any
    runtime: Any


def load_plan(library: Library, path: Path, onnx: Path | None = None) -> LoadedPlan:
    """Deserialize a plan that ``find`` gave.

    Args:
        onnx: the graph to read left-out weights from; None to leave them out.

    Raises:
        EngineError: the library refuses the plan or the weights.
    """
    trt = library.trt
    record = read_record(path)
    options = record.key.options if record else {}
    runtime = library.make(lambda: trt.Runtime(library.log), "a runtime")
    if options.get("version_compatible"):
        # Such a plan holds the code of the runtime that it was built with; the cache has checked that it is ours.
        runtime.engine_host_code_allowed = True
    plan = path.read_bytes()
    engine = library.make(lambda: runtime.deserialize_cuda_engine(plan), f"an engine of {path} (build it again)")
    if options.get("strip") and onnx is not None:
        _refit(library, engine, onnx)
    return LoadedPlan(engine, runtime)


@dataclass(frozen=True)
class Layer:
    """One layer of a plan.

    Attributes:
        name: as the library names it, often after the graph's nodes that were fused in it.
        kind: of layer; empty when the plan was built without details.
        outputs: data type and layout of each output; empty likewise.
    """

    name: str
    kind: str = ""
    outputs: tuple[str, ...] = ()


def layers(engine: str, path: Path) -> list[Layer]:
    """The layers of a plan; kinds and types are there if it was built with ``detailed_layers``.

    Args:
        engine: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        path: of the plan.

    Raises:
        EngineError: there is no GPU here, which reading a plan takes, or the library refuses the plan.
    """
    require_gpu("read the layers of a plan")
    library = load_library(engine)
    loaded = load_plan(library, path)
    inspector = library.make(loaded.engine.create_engine_inspector, "an engine inspector")
    return parse_layers(inspector.get_engine_information(library.trt.LayerInformationFormat.JSON))


def parse_layers(text: str) -> list[Layer]:
    """Layers out of an engine inspector's JSON: objects in a detailed plan, else names alone.

    Raises:
        EngineError: it is not of that form.
    """
    try:
        entries = decode_json(text, dict[str, Any], where="it")["Layers"]
        return [
            Layer(entry)
            if isinstance(entry, str)
            else Layer(
                entry["Name"],
                entry.get("LayerType", ""),
                tuple(output.get("Format/Datatype", "") for output in entry.get("Outputs", ())),
            )
            for entry in entries
        ]
    except (InputError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"the engine inspector gave no list of layers ({error!r})") from error


def _refit(library: Library, engine: Any, onnx: Path) -> None:
    trt = library.trt
    refitter = library.make(lambda: trt.Refitter(engine, library.log), "a refitter")
    parser = trt.OnnxParserRefitter(refitter, library.log)
    if not parser.refit_from_file(str(onnx)):
        refused = parser_errors(parser) or library.log.shown()
        raise EngineError("\n  ".join([f"{library.title} cannot read the weights of {onnx}: build again", *refused]))
    if not refitter.refit_cuda_engine():
        raise library.failure(f"{library.title} cannot put the weights of {onnx} into its plan: build again")


class _Buffer:
    """Device memory and page-locked host memory for one tensor of float32, freed with ``stack``.

    Attributes:
        host: the host memory as an array.
        pinned, device: addresses.
        row_bytes: size of one batch item.
    """

    def __init__(self, cuda: Any, shape: tuple[int, ...], stack: ExitStack) -> None:
        count = int(np.prod(shape))
        self.device: int = call(cuda.cudaMalloc, count * 4)
        stack.callback(call, cuda.cudaFree, self.device)
        self.pinned: int = call(cuda.cudaMallocHost, count * 4)
        stack.callback(call, cuda.cudaFreeHost, self.pinned)
        self.host = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.pinned)).reshape(shape)
        self.host[:] = 0
        self.row_bytes = count * 4 // shape[0]


def _batches(engine: Any) -> tuple[int, int]:
    """Smallest and largest batch that a plan takes."""
    batch = int(engine.get_tensor_shape("image")[0])
    if batch >= 0:
        return batch, batch
    smallest, _best, largest = engine.get_tensor_profile_shape("image", 0)
    return int(smallest[0]), int(largest[0])
