"""Value classes shared by the workstation and the device: what an encoder expects, returns and came from.

They are frozen, validated where they are decoded, and written as plain JSON. Unknown fields are refused: a field
that this version does not know may change the meaning of the others.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal

import msgspec

SCHEMA_VERSION = 1
MOST_WIDTH = 1 << 16  # of an embedding

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
# Beyond these, what is computed in float32 with them is no longer finite, or no longer tells one score from another.
_Scale = Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)]
_Bias = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
Channels = tuple[float, float, float]
ScoreKind = Literal["softmax", "sigmoid"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


class _Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen, keyword-only record that refuses unknown fields."""


class PreprocessSpec(_Value, frozen=True, kw_only=True):
    """How a frame becomes the encoder's input.

    HWC uint8 RGB in [0, 255] → resize (antialiased, as Pillow does it) → centre crop → ``(x / 255 - mean) / std`` →
    CHW float32.

    Attributes:
        height, width: the encoder's input, pixels.
        resize: ``"shortest"`` scales the shorter side to ``resize_to`` and keeps the aspect ratio (CLIP);
            ``"squash"`` scales straight to ``(height, width)`` and ignores it (SigLIP).
        resize_to: length of the shorter side before the crop, pixels; unused by ``"squash"``.
        interpolation: the resize filter.
        mean, std: per channel, RGB, on values in [0, 1].
    """

    height: Annotated[int, msgspec.Meta(ge=1, le=8192)]
    width: Annotated[int, msgspec.Meta(ge=1, le=8192)]
    resize: Literal["shortest", "squash"] = "shortest"
    resize_to: Annotated[int, msgspec.Meta(ge=1, le=8192)]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: Channels
    std: Channels

    def __post_init__(self) -> None:
        if not all(1e-4 <= value <= 1e3 for value in self.std) or not all(abs(value) <= 1e3 for value in self.mean):
            raise ValueError(
                f"expected every std from 0.0001 to 1000 and every mean from -1000 to 1000, got {self.std} and "
                f"{self.mean}"
            )
        if self.resize == "shortest" and self.resize_to < max(self.height, self.width):
            raise ValueError(
                f"expected resize_to of at least the crop ({self.height}x{self.width}), got {self.resize_to}"
            )


class EncoderSpec(_Value, frozen=True, kw_only=True):
    """What the image encoder takes and returns, and how its embedding is scored.

    The score of class c is ``logit_scale * cos(e, t_c) + logit_bias``, then softmax over the classes (CLIP) or
    sigmoid for each (SigLIP). The graph's embedding is not normalised; the runtime does that once.

    Attributes:
        embedding_dim: width D of the embedding and of every prompt table, at most 65,536.
        logit_scale: multiplier on the cosine, already exponentiated; from a millionth to a million.
        logit_bias: added after the scale; 0 for CLIP; a million either way at most.
    """

    preprocess: PreprocessSpec
    embedding_dim: Annotated[int, msgspec.Meta(ge=1, le=MOST_WIDTH)]
    logit_scale: _Scale
    logit_bias: _Bias = 0.0
    score: ScoreKind = "softmax"


class ModelOptions(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """What may be said of an open_clip model beside its name and weights.

    What is left out is taken from the weights (sizes, bias) or from what their tag or configuration states.

    Attributes:
        image_size: side of the model's input, or its height and width, pixels. Position embeddings of another size are
            resampled.
        context_length: tokens that a text may have.
        mean, std: of the preprocessing, RGB, on values in [0, 1].
        interpolation, resize_mode: as ``PreprocessSpec.interpolation`` and ``resize``.
        init_logit_bias: SigLIP's bias of the scores, for weights that hold none.
        quick_gelu: build the architecture with CLIP's first activation, as some tags' weights need it.
    """

    # Bounds are checked below: msgspec 0.23 crashes on a union of a bounded int and a tuple of such.
    image_size: int | tuple[int, int] | None = None
    context_length: Annotated[int, msgspec.Meta(ge=3, le=65536)] | None = None
    mean: Channels | None = None
    std: Channels | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize_mode: Literal["shortest", "squash"] | None = None
    init_logit_bias: float | None = None
    quick_gelu: bool = False

    def __post_init__(self) -> None:
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size or 1,)
        if not all(1 <= side <= 8192 for side in sides) or self.image_size == 0:
            raise ValueError(f"expected image_size from 1 to 8192 pixels, got {self.image_size}")
        figures = (*(self.mean or ()), *(self.std or (1.0,)), self.init_logit_bias or 0.0)
        if not all(map(math.isfinite, figures)) or min(self.std or (1.0,)) <= 0:
            raise ValueError(
                f"expected finite mean, std above 0 and a finite init_logit_bias, got {self.mean}, {self.std}, "
                f"{self.init_logit_bias}"
            )


NO_OPTIONS = ModelOptions()


class ModelOrigin(_Value, frozen=True, kw_only=True):
    """Where a model came from, precisely enough to load it again for its text encoder.

    Attributes:
        loader: the family of code that built it.
        name: what the loader was asked for (an open_clip name, a hub name or folder, a checkpoint path, ``starter``);
            a path on this machine in full.
        pretrained: the open_clip tag or the full path of a file, or None; ``none`` where a folder's own weights were
            not wanted.
        seed: seed of the random initialisation, when there were no pretrained weights.
        options: what was given or taken from the weights; left out where that is nothing.
    """

    loader: Literal["open_clip", "transformers", "edgeclip"]
    name: str
    pretrained: str | None = None
    seed: int | None = None
    options: ModelOptions | msgspec.UnsetType = msgspec.UNSET


class ModelIdentity(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """Which weights a bundle or a table belongs to.

    Attributes:
        image_sha256: digest of the image encoder's weights as loaded, before any export.
        text_sha256: the same of the text encoder: what a table builder checks before it adds rows.
        distilled_from: digests of other image encoders of the same text encoder, whose embeddings this image encoder
            was trained, or cut down by merging tokens, to give: its teacher, and the teacher's own. Tables made for
            them serve this one unchanged.
    """

    name: str
    origin: ModelOrigin
    image_sha256: Sha256
    text_sha256: Sha256
    distilled_from: tuple[Sha256, ...] = ()  # left out of the JSON where there is none, as before there was any

    @property
    def id(self) -> str:
        """Short digest of both encoders; tables carry it, and the runtime compares it."""
        return self._id_with(self.image_sha256)

    @property
    def table_ids(self) -> tuple[str, ...]:
        """The ids whose tables fit: the model's own, then those of the models that it stands in for.

        All have this identity's text encoder in them, so a table of any of them has rows that this encoder would get.
        """
        return (self.id, *(self._id_with(image) for image in self.distilled_from))

    def _id_with(self, image_sha256: str) -> str:
        return hashlib.sha256(f"{image_sha256}{self.text_sha256}".encode()).hexdigest()[:16]


class Variant(_Value, frozen=True, kw_only=True):
    """One form of the image encoder in a bundle.

    Attributes:
        file: path of the ONNX graph, relative to the bundle.
        data_files: further files that the graph reads (ONNX external data), relative to the bundle.
        precision: numeric type of the heavy computation.
        opset: ONNX opset of the graph.
        dynamic_batch: whether N is free; otherwise it is 1.
    """

    name: Name
    file: str
    data_files: tuple[str, ...] = ()
    precision: Precision
    opset: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    dynamic_batch: bool = True


class TableEntry(_Value, frozen=True, kw_only=True):
    """One prompt table listed in a manifest."""

    name: Name
    file: str
    classes: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
    content_hash: Sha256


class FileRecord(_Value, frozen=True, kw_only=True):
    """Size in bytes and sha256 of one file of a bundle."""

    size: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    sha256: Sha256


class Manifest(_Value, frozen=True, kw_only=True):
    """The contents of ``manifest.json``: everything about a bundle but the bulk data itself."""

    schema_version: int = SCHEMA_VERSION
    model: ModelIdentity
    encoder: EncoderSpec
    variants: tuple[Variant, ...]
    tables: tuple[TableEntry, ...] = ()
    tools: dict[str, str] = {}
    files: dict[str, FileRecord] = {}
