"""A model's name in, the model out: which loader understands which name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeclip.errors import ModelError
from edgeclip.extras import require
from edgeclip.spec import ModelIdentity
from edgeclip.training.checkpoint.files import CONFIG, checkpoint_folder
from edgeclip.training.model import ContrastiveModel, TextTower

HUB_PREFIX = "hf:"


def load_model(name: str, *, pretrained: str | None = None, seed: int = 0) -> ContrastiveModel:
    """Load a model by the form of its name.

    - ``hf:org/name`` or ``hf:./folder``: transformers, from the hub or a folder; so is a folder with ``config.json``.
    - ``starter``, a folder with ``checkpoint.json``, or a run's folder: trained by edgeclip.
    - Anything else, ``ViT-B-32`` say: open_clip, with ``pretrained`` (``none`` for random weights).

    Args:
        name: as above.
        pretrained: open_clip's tag or a checkpoint file; only for open_clip names.
        seed: of open_clip's random weights.

    Raises:
        ModelError: nothing of that name, or ``pretrained`` is missing or out of place.
    """
    loader = loader_of(name)
    if loader != "open_clip" and pretrained is not None:
        raise ModelError(f"`pretrained` is for open_clip names, got {pretrained!r} with {name!r}: leave it out")
    return _MODEL_LOADERS[loader](name, pretrained, seed)


def load_text_tower(identity: ModelIdentity) -> TextTower:
    """Load the text side of the model that ``identity`` describes, without its image side where the library can.

    Raises:
        ModelError: it cannot be found, or its weights are not the ones that ``identity`` describes.
    """
    origin = identity.origin
    text = _TEXT_LOADERS[origin.loader](origin.name, origin.pretrained, origin.seed or 0)
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
    if (checkpoint_folder(name) / CONFIG).is_file():
        return "edgeclip"
    if name.startswith(HUB_PREFIX) or (folder / "config.json").is_file():
        return "transformers"
    if folder.is_dir():
        raise ModelError(f"expected config.json or checkpoint.json in the folder {name}, got neither: choose another")
    return "open_clip"


def _open_clip(name: str, pretrained: str | None, seed: int) -> ContrastiveModel:
    from edgeclip.training.towers.open_clip import OpenClipModel

    if pretrained is None:
        open_clip = require("open_clip", purpose="load an open_clip model")
        if name in open_clip.list_models():
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "it has no tags"
            raise ModelError(
                f"expected `pretrained` with {name}: give one of its tags ({tags}), a checkpoint file, "
                "or none for random weights"
            )
    return OpenClipModel(name, pretrained, seed=seed)


def _transformers(name: str, pretrained: str | None, seed: int) -> ContrastiveModel:  # noqa: ARG001
    from edgeclip.training.towers.hugging_face import TransformersModel

    return TransformersModel(name.removeprefix(HUB_PREFIX))


def _edgeclip(name: str, pretrained: str | None, seed: int) -> ContrastiveModel:  # noqa: ARG001
    from edgeclip.training.checkpoint.checkpoint import load_checkpoint

    return load_checkpoint(name, teachers_text=load_text_tower)


def _open_clip_text(name: str, pretrained: str | None, seed: int) -> TextTower:
    from edgeclip.training.towers.open_clip import OpenClipModel

    return OpenClipModel(name, pretrained, seed=seed).text  # the text tower keeps no hold on the image tower


def _transformers_text(name: str, pretrained: str | None, seed: int) -> TextTower:  # noqa: ARG001
    from edgeclip.training.towers.hugging_face import TransformersTextTower

    return TransformersTextTower.load(name)


def _edgeclip_text(name: str, pretrained: str | None, seed: int) -> TextTower:  # noqa: ARG001
    from edgeclip.training.checkpoint.checkpoint import load_checkpoint_text

    return load_checkpoint_text(name, teachers_text=load_text_tower)


# By ModelOrigin.loader; each takes (name, pretrained, seed).
_MODEL_LOADERS: dict[str, Callable[[str, str | None, int], ContrastiveModel]] = {
    "open_clip": _open_clip,
    "transformers": _transformers,
    "edgeclip": _edgeclip,
}
_TEXT_LOADERS: dict[str, Callable[[str, str | None, int], TextTower]] = {
    "open_clip": _open_clip_text,
    "transformers": _transformers_text,
    "edgeclip": _edgeclip_text,
}
