"""A prompt table and a few labelled embeddings in, the same table adapted to them out.

Every method has a list of settings, from "leave the text rows as they are" to "trust the shots". Which is taken is
decided on the shots alone, by cross-validation: the one with the least loss on shots that were left out, of those that
do not make more mistakes on them than zero-shot does by more than chance. One shot a class leaves nothing to leave out;
then a fixed setting is taken, chosen once on Tiny-ImageNet's validation images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.errors import InputError
from edgeclip.prompts import PromptTable
from edgeclip.runtime.scoring import Scorer
from edgeclip.spec import EncoderSpec
from edgeclip.training.adapt.linear_probe import Shots, cache_of, class_means, fit_keys, fit_rows

_FOLDS = 4
_PULLS = (math.inf, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
_KEY_PULLS = (math.inf, 3.0, 0.3)
_ALPHAS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)  # in units of the model's logit scale
_BETAS = (1.0, 2.0, 4.0, 8.0)


class MethodSetting(msgspec.Struct, frozen=True):
    """How far a method goes from zero-shot.

    Attributes:
        pull: towards the start, of rows or keys; ``inf`` moves nothing. Written as null in JSON.
        alpha, beta: of the key cache; no cache at 0.
    """

    pull: float = math.inf
    alpha: float = 0.0
    beta: float = 1.0


class Adapted(msgspec.Struct, frozen=True):
    """What was chosen, and what it is worth on shots that were left out (None where none could be).

    Attributes:
        table: ready to be put into a bundle.
        top1, zero_shot_top1: cross-validated accuracy of the setting, and of the text rows on the same shots.
    """

    table: PromptTable
    setting: MethodSetting
    top1: float | None = None
    zero_shot_top1: float | None = None


Fit: TypeAlias = Callable[[PromptTable, Shots, EncoderSpec, Sequence[MethodSetting]], list[PromptTable]]
Settings: TypeAlias = Callable[[PromptTable, Shots, EncoderSpec, int], tuple[MethodSetting, ...]]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to adapt.

    Attributes:
        fit: a table for each setting; settings come from strong pulls to weak ones.
        settings: what to choose from.
        one_shot: what to take where nothing can be cross-validated.
        from_text: whether its first setting is zero-shot itself.
    """

    fit: Fit
    settings: Settings
    one_shot: Callable[[EncoderSpec], MethodSetting]
    from_text: bool = True


def adapt(table: PromptTable, shots: Shots, encoder: EncoderSpec, method: str, *, seed: int = 0) -> Adapted:
    """Fit a table to labelled embeddings; the setting is chosen on the shots alone.

    Args:
        table: text rows; class c of the shots is its row c, further rows (a background) have no shots.
        shots: any number of each class, none at all among them; without any the table is returned as it is.
        encoder: whose scale, bias and kind of score apply.
        method: of ``METHODS``.
        seed: of the division into folds.

    Raises:
        InputError: an unknown method, a label outside the table, or a table that was adapted before.
    """
    chosen = method_called(method)
    if table.adapted or table.cache:
        raise InputError(
            f"expected a table of text rows, got {table.name!r}, which was adapted before: {table.adapted}"
        )
    if not len(shots.labels):
        return Adapted(table, MethodSetting())
    if shots.labels.min() < 0 or shots.labels.max() >= len(table.classes):
        raise InputError(
            f"expected labels from 0 to {len(table.classes) - 1}, got {shots.labels.min()} to {shots.labels.max()}"
        )
    if not _can_validate(shots):
        setting = chosen.one_shot(encoder)
        return Adapted(_stamp(chosen.fit(table, shots, encoder, [setting])[0], method, shots, setting), setting)
    settings = chosen.settings(table, shots, encoder, seed)
    best, top1, zero_shot = cross_validate(chosen, table, shots, encoder, settings, seed=seed)
    fitted = chosen.fit(table, shots, encoder, settings[: best + 1])[-1]
    return Adapted(_stamp(fitted, method, shots, settings[best]), settings[best], top1, zero_shot)


def cross_validate(
    method: Method,
    table: PromptTable,
    shots: Shots,
    encoder: EncoderSpec,
    settings: Sequence[MethodSetting],
    *,
    seed: int = 0,
) -> tuple[int, float, float]:
    """The setting with the least loss on left-out shots, its top-1 on them, and zero-shot's.

    The shots of each class are spread over the folds. A class with one shot helps to fit but is not asked about.
    """
    fold_of = _spread(shots.labels, seed)
    several = np.bincount(shots.labels)[shots.labels] > 1
    losses = np.zeros(len(settings))
    hits = np.zeros((len(settings), len(shots.labels)), np.int64)
    zero_shot = np.zeros(len(shots.labels), np.int64)
    for fold in range(_FOLDS):
        held = np.flatnonzero((fold_of == fold) & several)
        if not len(held):
            continue
        left_out = shots.take(held)
        zero_shot[held] = _loss_and_hits(table, left_out, encoder)[1]
        fitted = method.fit(table, shots.take(np.flatnonzero((fold_of != fold) | ~several)), encoder, settings)
        for index, candidate in enumerate(fitted):
            loss, hits[index, held] = _loss_and_hits(candidate, left_out, encoder)
            losses[index] += loss
    if method.from_text:
        # Of n answers that differ, as many as √n more may be wrong by chance (one standard deviation of the sign test).
        lost = (zero_shot - hits).sum(axis=1)
        losses[lost > np.sqrt(np.abs(zero_shot - hits).sum(axis=1))] = np.inf
    best, asked = int(losses.argmin()), int(several.sum())
    return best, float(hits[best].sum() / asked), float(zero_shot.sum() / asked)


def method_called(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        raise InputError(f"expected a method out of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def _can_validate(shots: Shots) -> bool:
    """Whether most classes that have a shot have two."""
    counts = np.bincount(shots.labels)
    return bool((counts > 1).sum() * 2 > (counts > 0).sum())


def _spread(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """A fold for each shot; a class's shots lie in as many different folds as there can be."""
    chooser = np.random.default_rng(seed)
    folds = np.zeros(len(labels), np.int64)
    begin = 0
    for label in np.unique(labels):
        rows = chooser.permutation(np.flatnonzero(labels == label))
        folds[rows] = (np.arange(len(rows)) + begin) % _FOLDS
        begin += len(rows)
    return folds


def _loss_and_hits(table: PromptTable, shots: Shots, encoder: EncoderSpec) -> tuple[float, npt.NDArray[np.bool_]]:
    """Negative log-likelihood, and which answers (M,) are right, as the runtime scores them."""
    scores = np.clip(Scorer(table, encoder).scores(shots.embeddings), 1e-12, 1 - 1e-7).astype(np.float64)  # (M, C)
    own = scores[np.arange(len(scores)), shots.labels]
    loss = -np.log(own).sum()
    if encoder.score == "sigmoid":
        loss -= np.log1p(-scores).sum() - np.log1p(-own).sum()
    return float(loss), scores.argmax(axis=1) == shots.labels


def _stamp(table: PromptTable, method: str, shots: Shots, setting: MethodSetting) -> PromptTable:
    """Write into the table how it came about."""
    counts = np.bincount(shots.labels)
    fewest, most = int(counts[counts > 0].min()), int(counts.max())
    each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    digest = hashlib.sha256(np.ascontiguousarray(shots.embeddings).tobytes() + shots.labels.tobytes()).hexdigest()
    said = f"{method}, {each} shots a class, pull {setting.pull:g}, alpha {setting.alpha:g}, beta {setting.beta:g}"
    return dataclasses.replace(table, adapted=f"{said}, shots {digest[:12]}")


def _fit_probe(
    table: PromptTable, shots: Shots, encoder: EncoderSpec, settings: Sequence[MethodSetting]
) -> list[PromptTable]:
    start = class_means(shots, len(table.classes))
    return _with_rows(table, fit_rows(start, shots, encoder, [setting.pull for setting in settings]))


def _fit_from_text(
    table: PromptTable, shots: Shots, encoder: EncoderSpec, settings: Sequence[MethodSetting]
) -> list[PromptTable]:
    return _with_rows(table, fit_rows(table.embeddings, shots, encoder, [setting.pull for setting in settings]))


def _with_rows(table: PromptTable, found: Sequence[npt.NDArray[np.float32]]) -> list[PromptTable]:
    return [dataclasses.replace(table, embeddings=rows) for rows in found]


def _fit_tip(
    table: PromptTable,
    shots: Shots,
    encoder: EncoderSpec,  # noqa: ARG001
    settings: Sequence[MethodSetting],
) -> list[PromptTable]:
    return [dataclasses.replace(table, cache=cache_of(shots, item.alpha, item.beta)) for item in settings]


def _fit_tip_f(
    table: PromptTable, shots: Shots, encoder: EncoderSpec, settings: Sequence[MethodSetting]
) -> list[PromptTable]:
    with_keys = [setting for setting in settings if setting.alpha > 0]
    found = [table] * (len(settings) - len(with_keys))  # zero-shot comes first
    if with_keys:
        alpha, beta = with_keys[0].alpha, with_keys[0].beta
        pulls = [setting.pull for setting in with_keys]
        caches = fit_keys(table.embeddings, shots, encoder, alpha=alpha, beta=beta, pulls=pulls)
        found += [dataclasses.replace(table, cache=cache) for cache in caches]
    return found


def _tip_settings(encoder: EncoderSpec) -> tuple[MethodSetting, ...]:
    grid = (MethodSetting(alpha=alpha * encoder.logit_scale, beta=beta) for beta in _BETAS for alpha in _ALPHAS)
    return (MethodSetting(), *grid)


def _tip_one_shot(encoder: EncoderSpec) -> MethodSetting:
    return MethodSetting(alpha=encoder.logit_scale / 4, beta=4.0)


def _tip_f_settings(table: PromptTable, shots: Shots, encoder: EncoderSpec, seed: int) -> tuple[MethodSetting, ...]:
    """Tip-Adapter's own alpha and beta first, then how far its keys may move."""
    grid = _tip_settings(encoder)
    tip = grid[cross_validate(METHODS["tip-adapter"], table, shots, encoder, grid, seed=seed)[0]]
    start = tip if tip.alpha > 0 else _tip_one_shot(encoder)
    return (MethodSetting(), *(MethodSetting(pull, start.alpha, start.beta) for pull in _KEY_PULLS))


def _pulls(*_: object) -> tuple[MethodSetting, ...]:
    return tuple(MethodSetting(pull) for pull in _PULLS)


METHODS: dict[str, Method] = {
    "probe": Method(_fit_probe, _pulls, lambda _: MethodSetting(), from_text=False),
    "zs-probe": Method(_fit_from_text, _pulls, lambda _: MethodSetting(pull=1.0)),
    "tip-adapter": Method(_fit_tip, lambda _table, _shots, encoder, _seed: _tip_settings(encoder), _tip_one_shot),
    "tip-adapter-f": Method(_fit_tip_f, _tip_f_settings, _tip_one_shot),
}
