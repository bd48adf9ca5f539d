"""A variant, an engine and this machine in; all that decides what they compute together, out: what a proof belongs to.

A proof is kept under the digest of this and taken anew when any of it changes: the graph, the library and its plug-ins
by the versions that the engine itself names, what was compiled for it, the driver, the device, options of ours and of
the environment. Packages that the engine does not run with are no part of it.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from edgeclip.bundle import Bundle
from edgeclip.devices.machine.cpu import cpu_flags
from edgeclip.devices.machine.cuda import driver_cuda_version, find_gpu
from edgeclip.devices.machine.probe import Description, describe_machine, installed_versions
from edgeclip.engine_list import engine_entry, engine_packages
from edgeclip.errors import MissingExtraError
from edgeclip.files import cache_dir, keep_json, kept_json, sha256_json
from edgeclip.runtime.engines.base import Engine, engine_class, module_stamp
from edgeclip.runtime.engines.plan_cache import graph_sha256, records
from edgeclip.spec import EncoderSpec, Variant
from edgeclip.version import __version__

# By these names inference libraries take what changes their kernels, their threads or the device. None is among them
# that libraries set themselves when they are loaded, as OpenCV does LD_LIBRARY_PATH: no proof would be found again.
_VARIABLES = (
    *("CUBLAS_", "CUDA_DEVICE_", "CUDA_VISIBLE_DEVICES", "CUDNN_", "NVIDIA_TF32_OVERRIDE", "TENSORRT_", "TRT_"),
    *("DNNL_", "GOMP_", "KMP_AFFINITY", "OMP_", "ONEDNN_", "OPENVINO_", "ORT_", "OV_", "TBB_"),
)
_NO_PART = {"torch", "memory_gib"}  # of what a machine says of itself
_OF_A_GPU = {"gpu", "nvidia_driver"}


class WhatRuns(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides what an engine computes of a variant here.

    Attributes:
        graph: digests of the graph and the files beside it.
        versions: as the engine names them.
        plans: sha256 of what was compiled of the graph for the engine, the latest first.
        threads: that were asked for.
        variables: of the environment.
        device: board or CPU, its instructions, cores, driver, power mode, and the GPU where the engine may use it.
    """

    variant: Variant
    encoder: EncoderSpec
    graph: tuple[str, ...]
    engine: str
    versions: dict[str, str]
    plans: tuple[str, ...]
    threads: int | None
    variables: dict[str, str]
    device: Description
    edgeclip: str = __version__

    def digest(self, *more: object) -> str:
        """Hex sha256 of all this, and of what else the caller's result depends on."""
        return sha256_json((self, more))


def what_runs(
    bundle: Bundle, variant: str, engine: str, *, threads: int | None, versions: dict[str, str] | None = None
) -> WhatRuns:
    """Ask the bundle, the engine's class and the machine; no session is built.

    Args:
        versions: what the engine names; None to ask it, which loads its library.

    Raises:
        VariantError: no such variant.
        EngineError: no such engine, or its library does not load.
        MissingExtraError: the engine's library is not installed.
    """
    described, found = bundle.variant(variant), engine_class(engine)
    # Checked against the manifest when the graph is opened, so read from there where one file is all there is.
    graph = bundle.graph_digests(variant)
    of_plans = graph_sha256(bundle.variant_path(variant)) if described.data_files else graph[0]
    return WhatRuns(
        variant=described,
        encoder=bundle.manifest.encoder,
        graph=tuple(graph),
        engine=engine,
        versions=_versions(found) if versions is None else versions,
        plans=tuple(record.sha256 for record in records(engine, of_plans)),  # an engine takes the one built last
        threads=threads,
        variables={name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
        device=_device(found),
    )


def remembered_versions(engine: str) -> dict[str, str] | None:
    """What an engine last named, while its packages are the same; None if that is not known.

    For those that do not run, whose libraries need not be loaded to look a proof up; of what runs it is no proof, as a
    library may be changed under its package.
    """
    return kept_json(_remembered(engine), dict[str, str])


def _versions(engine: type[Engine]) -> dict[str, str]:
    named = engine.versions()
    if named != remembered_versions(engine.name):
        keep_json(_remembered(engine.name), named)
    return named


def _remembered(engine: str) -> Path:
    entry = engine_entry(engine)
    stamp = (engine, installed_versions(entry.packages), module_stamp(entry.module))
    return cache_dir("versions") / f"{sha256_json(stamp)}.json"


def _device(engine: type[Engine]) -> Description:
    """What of the machine may change what the engine computes; versions of other engines' packages do not."""
    passed_over = {*engine_packages(), *_NO_PART, *(_OF_A_GPU if engine.on_cpu else ())}
    device = {key: value for key, value in describe_machine().items() if key not in passed_over}
    device["instructions"] = " ".join(sorted(cpu_flags()))  # one name stands for several CPUs on rented machines
    if not engine.on_cpu:
        try:
            if (gpu := find_gpu()) is not None:
                device["gpu"], device["compute_capability"] = gpu.name, gpu.compute_capability
        except MissingExtraError:
            pass  # then no engine that needs them runs, and a library of its own finds the GPU itself
        if (serves := driver_cuda_version()) is not None:  # all that is known of the driver under WSL
            device["driver_cuda"] = ".".join(map(str, serves))
    return device
