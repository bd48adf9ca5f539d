"""Real small files and a real small model, made once a session."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from skimage import data as skimage_data

from edgeclip import Bundle, EncoderSpec, Manifest, ModelIdentity, ModelOrigin, PreprocessSpec, PromptTable, Variant
from edgeclip.bundle import create_bundle, write_manifest
from edgeclip.prompts import make_classes, unit_rows
from edgeclip.runtime.images import write_image

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
SIZE, WIDTH = 32, 16


def shared(*parts: str) -> Path:
    """A path below ../shared/data, or skip the test."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}, which is not on this machine")
    return path


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests compute and keep goes to a folder of this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def photographs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five real photographs as JPEG and PNG files."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        write_image(folder / f"{name}.jpg", getattr(skimage_data, name)())
    write_image(folder / "motorcycle.png", skimage_data.stereo_motorcycle()[0])
    return folder


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 40-frame H.264 video, 320×240 at 20 frames/s, that pans over a photograph."""
    path = tmp_path_factory.mktemp("video") / "pan.mp4"
    photograph = skimage_data.astronaut()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for index in range(40):
            image = np.ascontiguousarray(photograph[100 + index : 340 + index, 60 + index : 380 + index])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 20)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_table(name: str = "things", *, model_id: str, width: int = WIDTH, seed: int = 0) -> PromptTable:
    """A table of three classes with random unit rows."""
    rows = np.random.default_rng(seed).standard_normal((3, width)).astype(np.float32)
    return PromptTable(
        name, make_classes(["cat", "rocket", "cup | mug"]), unit_rows(rows), ("a photo of a {}.",), model_id
    )


def identity(seed: int = 0) -> ModelIdentity:
    """The identity of the tiny model."""
    origin = ModelOrigin(loader="open_clip", name="ViT-B-32", seed=seed)
    return ModelIdentity(name="tiny", origin=origin, image_sha256=f"{seed:x}" * 64, text_sha256="b" * 64)


@pytest.fixture(scope="session")
def _tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((8, 3, 4, 4)).astype(np.float32)
    projection = rng.standard_normal((8, WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernel"], ["maps"], strides=[4, 4]),
            helper.make_node("Relu", ["maps"], ["active"]),
            helper.make_node("ReduceMean", ["active", "axes"], ["pooled"], keepdims=0),
            helper.make_node("MatMul", ["pooled", "projection"], ["embedding"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", WIDTH])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(projection, "projection"),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    preprocess = PreprocessSpec(height=SIZE, width=SIZE, resize_to=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    path = tmp_path_factory.mktemp("bundles") / "tiny.edgeclip"
    with create_bundle(path) as folder:
        onnx.save(model, str(folder / "image_encoder" / "fp32.onnx"))
        write_manifest(
            folder,
            Manifest(
                model=identity(),
                encoder=EncoderSpec(preprocess=preprocess, embedding_dim=WIDTH, logit_scale=50.0),
                variants=(Variant(name="fp32", file="image_encoder/fp32.onnx", precision="fp32", opset=18),),
            ),
            scan=True,
        )
    bundle = Bundle.open(path)
    bundle.add_table(make_table(model_id=bundle.manifest.model.id))
    return path


@pytest.fixture
def tiny_bundle(_tiny_bundle: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy, free to be damaged, of a real bundle around a real (tiny, random) encoder with one table."""
    copy = tmp_path / "tiny.edgeclip"
    shutil.copytree(_tiny_bundle, copy)
    return copy
