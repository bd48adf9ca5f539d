"""A model's name in, the model out: which loader understands which name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeclip.bundle import STARTER
from edgeclip.documents import read_json
from edgeclip.errors import ModelError
from edgeclip.extras import require
from edgeclip.printable import printable
from edgeclip.spec import NO_OPTIONS, ModelIdentity, ModelOptions, ModelOrigin
from edgeclip.training.checkpoint.files import CONFIG, checkpoint_folder
from edgeclip.training.model import ContrastiveModel, TextTower

HUB_PREFIX = "hf:"
# As open_clip spells them; its own file of them needs torch.
OPEN_CLIP_FOLDER, OPEN_CLIP_HUB, OPEN_CLIP_CONFIG = "local-dir:", "hf-hub:", "open_clip_config.json"

_log = logging.getLogger("edgeclip")


def load_model(
    name: str, *, pretrained: str | None = None, seed: int = 0, options: ModelOptions = NO_OPTIONS
) -> ContrastiveModel:
    """Load a model by the form of its name. What is settled that the name does not say is logged, and in its ``notes``.

    - ``hf:org/name`` or ``hf:./folder``: transformers, from the hub or a folder; so is a folder with ``config.json``.
    - ``starter``, a folder with ``checkpoint.json``, or a run's folder: trained by edgeclip.
    - ``local-dir:FOLDER``, a folder with ``open_clip_config.json``, or ``hf-hub:ORG/NAME``: open_clip, with the weights
      that lie there.
    - Anything else, ``ViT-B-32`` say: open_clip, with ``pretrained`` (``none`` for random weights).

    Paths are kept in full: what is made of the model finds it from another folder.

    Args:
        name: as above.
        pretrained: open_clip's tag or a checkpoint file; only for open_clip names.
        seed: of open_clip's random weights.
        options: what is known of an open_clip model beside.

    Raises:
        ModelError: nothing of that name, or ``pretrained`` or ``options`` are missing, wrong or out of place.
    """
    loader = loader_of(name)
    if loader != "open_clip":
        if pretrained is not None:
            raise ModelError(f"`pretrained` is for open_clip names, got {pretrained!r} with {name!r}: leave it out")
        if given := [key for key in options.__struct_fields__ if getattr(options, key)]:
            raise ModelError(f"options are for open_clip names, got {', '.join(given)} with {name!r}: leave them out")
    elif pretrained is None:
        _require_pretrained(in_full(name))
    model = _MODEL_LOADERS[loader](in_full(name), _file_in_full(pretrained), seed, options)
    for note in model.notes:
        _log.warning("%s", printable(note))
    return model


def load_again(origin: ModelOrigin) -> ContrastiveModel:
    """The model that a bundle was made from.

    Raises:
        ModelError: as ``load_model``.
    """
    return _MODEL_LOADERS[origin.loader](origin.name, origin.pretrained, origin.seed or 0, _options_of(origin))


def load_text_tower(identity: ModelIdentity) -> TextTower:
    """Load the text side of the model that ``identity`` describes, without its image side where the library can.

    Raises:
        ModelError: it cannot be found, or its weights are not the ones that ``identity`` describes.
    """
    origin = identity.origin
    text = _TEXT_LOADERS[origin.loader](origin.name, origin.pretrained, origin.seed or 0, _options_of(origin))
    if text.sha256 != identity.text_sha256:
        raise ModelError(
            f"{identity.name} has changed: expected text weights with sha256 {identity.text_sha256[:12]}…, got "
            f"{text.sha256[:12]}…; load the weights that the bundle was made from, or export again"
        )
    return text


def loader_of(name: str) -> str:
    """Which loader takes a name: ``edgeclip``, ``transformers`` or ``open_clip``.

    Raises:
        ModelError: a folder that none of them knows.
    """
    folder = Path(name)
    if name.startswith((OPEN_CLIP_FOLDER, OPEN_CLIP_HUB)):
        return "open_clip"
    if (checkpoint_folder(name) / CONFIG).is_file():
        return "edgeclip"
    # Models of timm have a config.json too, which transformers cannot read.
    if (folder / OPEN_CLIP_CONFIG).is_file() and not _has_model_type(folder / "config.json"):
        return "open_clip"
    if name.startswith(HUB_PREFIX) or (folder / "config.json").is_file():
        return "transformers"
    if folder.is_dir():
        raise ModelError(
            f"expected config.json, {OPEN_CLIP_CONFIG} or checkpoint.json in the folder {name}, got none of them: "
            "choose another"
        )
    return "open_clip"


def in_full(name: str) -> str:
    """A model's name with a path in it in full; a folder with ``open_clip_config.json`` alone as ``local-dir:``."""
    for prefix in (OPEN_CLIP_FOLDER, HUB_PREFIX):
        path = Path(name.removeprefix(prefix)).expanduser()
        if name.startswith(prefix) and path.is_dir():
            return f"{prefix}{path.absolute()}"
    if not Path(name).is_dir() or name == STARTER:
        return name
    full = os.path.normpath(Path(name).absolute())
    return f"{OPEN_CLIP_FOLDER}{full}" if loader_of(name) == "open_clip" else full


def short_name(name: str) -> str:
    """What to call what is made of a model: the last part of its name, or of the path in full."""
    for prefix in (OPEN_CLIP_FOLDER, OPEN_CLIP_HUB, HUB_PREFIX):
        name = name.removeprefix(prefix)
    return Path(os.path.normpath(Path(name).absolute())).name or "model"


def _has_model_type(config: Path) -> bool:
    """Whether a config.json is one of transformers'."""
    return config.is_file() and "model_type" in read_json(config, dict[str, Any], error=ModelError)


def _options_of(origin: ModelOrigin) -> ModelOptions:
    return origin.options if isinstance(origin.options, ModelOptions) else NO_OPTIONS


def _require_pretrained(name: str) -> None:
    """Refuse an architecture of open_clip without weights; a folder and a name of the hub have their own."""
    if name.startswith((OPEN_CLIP_FOLDER, OPEN_CLIP_HUB)):
        return
    open_clip = require("open_clip", purpose="load an open_clip model")
    if name in open_clip.list_models():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "it has no tags"
        raise ModelError(
            f"expected `pretrained` with {name}: give one of its tags ({tags}), a checkpoint file, "
            "or none for random weights"
        )


def _open_clip(name: str, pretrained: str | None, seed: int, options: ModelOptions) -> ContrastiveModel:
    from edgeclip.training.towers.open_clip import OpenClipModel

    return OpenClipModel(name, pretrained, seed=seed, options=options)


def _file_in_full(pretrained: str | None) -> str | None:
    """A tag as it is, the path of a file in full."""
    if not pretrained or not Path(pretrained).expanduser().is_file():
        return pretrained
    return os.path.normpath(Path(pretrained).expanduser().absolute())


def _transformers(name: str, *_: object) -> ContrastiveModel:
    from edgeclip.training.towers.hugging_face import TransformersModel

    return TransformersModel(name.removeprefix(HUB_PREFIX))


def _edgeclip(name: str, *_: object) -> ContrastiveModel:
    from edgeclip.training.checkpoint.checkpoint import load_checkpoint

    return load_checkpoint(name, teachers_text=load_text_tower)


def _open_clip_text(name: str, pretrained: str | None, seed: int, options: ModelOptions) -> TextTower:
    from edgeclip.training.towers.open_clip import OpenClipTextTower
    from edgeclip.training.towers.open_clip_load import load_open_clip

    # The text tower keeps no hold on the image tower.
    return OpenClipTextTower(load_open_clip(name, pretrained, seed=seed, options=options))


def _transformers_text(name: str, *_: object) -> TextTower:
    from edgeclip.training.towers.hugging_face import TransformersTextTower

    return TransformersTextTower.load(name)


def _edgeclip_text(name: str, *_: object) -> TextTower:
    from edgeclip.training.checkpoint.checkpoint import load_checkpoint_text

    return load_checkpoint_text(name, teachers_text=load_text_tower)


# By ModelOrigin.loader; each takes (name, pretrained, seed, options).
_MODEL_LOADERS: dict[str, Callable[[str, str | None, int, ModelOptions], ContrastiveModel]] = {
    "open_clip": _open_clip,
    "transformers": _transformers,
    "edgeclip": _edgeclip,
}
_TEXT_LOADERS: dict[str, Callable[[str, str | None, int, ModelOptions], TextTower]] = {
    "open_clip": _open_clip_text,
    "transformers": _transformers_text,
    "edgeclip": _edgeclip_text,
}
