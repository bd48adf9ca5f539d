"""Facts of a machine in, findings on the libraries that run encoders out: which load, are missing, or clash."""

from __future__ import annotations

from collections.abc import Iterator

from edgeclip.devices.doctor.finding import Facts, Finding, Rule
from edgeclip.devices.machine.software import PIP_TENSORRT, Software
from edgeclip.engine_list import engine_libraries

# What engines need beside their own library -> what installs it.
_NEEDED = {"av": "av", "cuda-bindings": "edgeclip[cuda]"}
_GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
_INSTALL_DRIVER = {
    "ubuntu": ("sudo ubuntu-drivers install", "sudo reboot"),
    "debian": ("sudo apt install nvidia-driver", "sudo reboot"),  # from Debian's non-free section
}
_OTHER_DRIVER = ("xdg-open https://www.nvidia.com/drivers",)


def engines(facts: Facts) -> Iterator[Finding]:
    """Which engines load; without any nothing runs."""
    software = facts.software
    if software is None:
        return
    loaded = [f"{name} {software.library(name).version}" for name in engine_libraries() if software.loads(name)]
    if loaded:
        yield Finding("engines", "ok", f"engines load: {', '.join(loaded)}")
    else:
        yield Finding(
            "engines",
            "problem",
            "no engine loads",
            "nothing can run an encoder",
            ("pip install --force-reinstall onnxruntime",),
            stops=True,
        )


def broken(facts: Facts) -> Iterator[Finding]:
    """Libraries that are installed and do not load or do not work."""
    software = facts.software
    engines = {name: entry.install for name, entry in engine_libraries().items()}
    for name, package in (engines | _NEEDED).items() if software else ():
        assert software is not None
        tried = software.library(name)
        why = tried.error or tried.facts.get("broken")
        if why is None or (name == "cuda-bindings" and _too_new(software)):
            continue
        on_jetson = facts.machine.jetson is not None and name == "tensorrt"
        remove = _without_pip_tensorrt(facts) if on_jetson else ()
        yield Finding(
            f"{name}-broken",
            "problem",
            f"{name} is installed but does not {'load' if tried.error else 'work'}",
            why,
            remove
            if remove
            else ("sudo apt install --reinstall python3-libnvinfer",)
            if on_jetson
            else (f"pip install --force-reinstall '{package}'",),
        )


def missing(facts: Facts) -> Iterator[Finding]:
    """Libraries that edgeclip comes with, or that are the best ones for this machine."""
    software = facts.software
    if software is None:
        return
    if not software.library("av").installed:
        yield Finding(
            "av",
            "problem",
            "PyAV is not installed",
            "video files and network cameras are read with it",
            ("pip install av",),
        )
    if not software.library("openvino").installed and not _has_gpu(facts):
        yield Finding(
            "openvino",
            "note",
            "OpenVINO is not installed",
            "on a CPU it is often the fastest engine, and edgeclip label then measures it beside ONNX Runtime",
            ("pip install 'edgeclip[openvino]'",),
        )


def clashes(facts: Facts) -> Iterator[Finding]:
    """Packages that overwrite each other's files."""
    for names in facts.software.clashes() if facts.software else ():
        gpu = "onnxruntime-gpu" in names
        keep = "onnxruntime-gpu" if gpu else "onnxruntime" if "onnxruntime" in names else names[0]
        if "opencv-python-headless" in names:
            keep = "opencv-python-headless"
        yield Finding(
            "clash",
            "note",
            f"{' and '.join(names)} are installed together",
            "they bring the same module and overwrite each other: which one runs is chance, and removing one breaks "
            "the other",
            (f"pip uninstall -y {' '.join(names)}", f"pip install {keep}"),
        )


def gpu_driver(facts: Facts) -> Iterator[Finding]:
    """NVIDIA's driver, and CUDA's bindings that fit it."""
    machine, software = facts.machine, facts.software
    cards = machine.nvidia
    if cards and machine.jetson is None:
        names = ", ".join(dict.fromkeys(cards.names)) or f"{cards.on_bus} NVIDIA GPU{'s' if cards.on_bus > 1 else ''}"
        if cards.driver is None:
            yield Finding(
                "nvidia-driver",
                "problem",
                f"{names} on the PCI bus, and no driver loaded",
                "the GPU cannot be used" + (": a container gets the driver from its host" if machine.container else ""),
                ("docker run --gpus all …",)
                if machine.container
                else _INSTALL_DRIVER.get(machine.distribution_id or "", _OTHER_DRIVER),
            )
            return
        yield Finding("nvidia-driver", "ok", f"{names}, driver {cards.driver}")
        if software and "cuda" not in software.library("nvidia-driver").facts:
            yield Finding(
                "libcuda",
                "problem",
                "the driver is loaded, but its libcuda.so.1 is not found",
                "CUDA cannot start" + (": the container was started without the GPU" if machine.container else ""),
                ("docker run --gpus all …",) if machine.container else ("sudo ldconfig", "nvidia-smi"),
            )
    if software is None or not (served := software.library("nvidia-driver").facts.get("cuda")):
        return
    major = served.partition(".")[0]
    if _too_new(software):
        yield Finding(
            "cuda-bindings",
            "problem",
            f"cuda-bindings {software.library('cuda-bindings').version} with a driver for CUDA {served}",
            "bindings of a newer CUDA do not start with an older driver",
            (f"pip install 'cuda-bindings=={major}.*'",),
        )
    elif not software.library("cuda-bindings").installed:
        yield Finding(
            "cuda-bindings",
            "problem",
            "cuda-bindings is not installed",
            "engines on the GPU need it; its major version is that of the driver's CUDA",
            (f"pip install 'cuda-bindings=={major}.*'",),
        )


def gpu_engine(facts: Facts) -> Iterator[Finding]:
    """Whether anything here runs on the NVIDIA GPU of a PC."""
    software = facts.software
    if software is None or facts.machine.jetson or "cuda" not in software.library("nvidia-driver").facts:
        return
    works = software.library("onnxruntime").facts.get("works", "").split()
    own = [name for name, entry in engine_libraries().items() if entry.nvidia]
    if any(software.loads(name) for name in own) or set(works) & set(_GPU_PROVIDERS):
        return
    fails = software.library("onnxruntime").facts.get("fails", "").split()
    also = f"; ONNX Runtime has {', '.join(fails)}, which do not load" if fails else ""
    yield Finding(
        "gpu-engine",
        "problem",
        f"there is an NVIDIA GPU, and no engine for it{also}",
        "encoders run on the CPU",
        ("pip install 'edgeclip[tensorrt]'",),
    )


def intel_gpu(facts: Facts) -> Iterator[Finding]:
    """Whether OpenVINO sees Intel's GPU, if there is one."""
    software = facts.software
    if software is None or not facts.machine.intel_gpus or not software.loads("openvino"):
        return
    devices = software.library("openvino").facts.get("devices", "").split()
    if any(name.startswith("GPU") for name in devices):
        yield Finding("intel-gpu", "ok", "OpenVINO sees Intel's GPU")
        return
    groups = tuple(f"sudo usermod -aG {name} $USER" for name in software.missing_groups if name == "render")
    yield Finding(
        "intel-gpu",
        "note",
        "there is a GPU of Intel's that OpenVINO does not see",
        "openvino-gpu cannot run: it takes Intel's OpenCL driver, and the group render",
        ("sudo apt install intel-opencl-icd", *groups),
    )


def builders(facts: Facts) -> Iterator[Finding]:
    """TensorRTs that load, have a driver, and still make no builder."""
    software = facts.software
    served = software.library("nvidia-driver").facts.get("cuda") if software else None
    for name in engine_libraries() if software and served else ():
        assert software is not None
        assert served is not None
        if software.library(name).facts.get("builder") == "no":
            remove = _without_pip_tensorrt(facts) if name == "tensorrt" else ()
            yield Finding(
                f"{name}-builder",
                "problem",
                f"{name} {software.library(name).version} loads, and makes no builder with a driver for CUDA {served}",
                "pip's TensorRT hides JetPack's own, which is made for this driver"
                if remove
                else "it may be of a newer CUDA than the driver: take one of the driver's, or a newer driver",
                remove
                if remove
                else (f"pip install --force-reinstall tensorrt-cu{served.partition('.')[0]}",)
                if name == "tensorrt"
                else _INSTALL_DRIVER.get(facts.machine.distribution_id or "", _OTHER_DRIVER),
            )


def _without_pip_tensorrt(facts: Facts) -> tuple[str, ...]:
    """What removes a TensorRT of pip's from a Jetson, after which JetPack's is seen; nothing where there is none."""
    if facts.machine.jetson is None or facts.software is None:
        return ()
    pips = [name for name in PIP_TENSORRT if name in facts.software.packages]
    if not pips and not facts.system_python_too_old:  # JetPack's own is of an older Python there and cannot be meant
        return ()
    return (f"pip uninstall -y {' '.join(('tensorrt', *pips))}",)


def _too_new(software: Software) -> bool:
    """Whether CUDA's bindings are of a later major version than the driver serves."""
    bindings, served = software.library("cuda-bindings").version, software.library("nvidia-driver").facts.get("cuda")
    if bindings is None or served is None:
        return False
    major = bindings.partition(".")[0]
    return major.isdigit() and int(major) > int(served.partition(".")[0])


def _has_gpu(facts: Facts) -> bool:
    cards = facts.machine.nvidia
    return facts.machine.jetson is not None or (cards is not None and cards.driver is not None)


RULES: tuple[Rule, ...] = (engines, broken, missing, clashes, gpu_driver, gpu_engine, builders, intel_gpu)
