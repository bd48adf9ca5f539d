"""Two checkpoints and folders of labelled images in, zero-shot top-1 of the models between them out (WiSE-FT)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edgeclip.devices.probe import describe_machine
from edgeclip.errors import InputError, SourceError
from edgeclip.evaluation.class_sets import class_prompts
from edgeclip.evaluation.metrics import true_class_ranks, wilson_interval
from edgeclip.evaluation.wise_report import RULE, Accuracy, AlphaResult, MeasuredSet, WiseReport, mean_of
from edgeclip.prompts import FloatArray, PromptClass, build_table, load_templates, unit_rows
from edgeclip.runtime.images import Image, list_labelled, read_image
from edgeclip.training.features import features_of
from edgeclip.training.locked import TextFeatures
from edgeclip.training.towers import ImageTower
from edgeclip.training.two_tower import TwoTower
from edgeclip.training.wise_checkpoint import CheckpointsBetween
from edgeclip.training.wise_ft import ALPHAS

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class WiseOptions:
    """What is measured.

    Attributes:
        alphas: the models, from 0 (zero-shot) to 1 (fine-tuned).
        templates: prompts that a class name goes through.
        names: JSON, folder name → class name or list of names. A shift set none of whose folders is in it goes by its
            folders' own names.
    """

    alphas: tuple[float, ...] = ALPHAS
    templates: tuple[str, ...] = field(default_factory=lambda: load_templates("simple"))
    names: Path | None = None


class DecodedSet:
    """A folder with one folder of images a class.

    Raises:
        SourceError: no class folders, or one without images.
        InputError: ``names`` lacks a folder.
    """

    def __init__(self, folder: Path, names: Path | None) -> None:
        self.files, folders = list_labelled(folder)
        self.name = folder.resolve().name
        self.classes: tuple[PromptClass, ...] = class_prompts(folders, names)
        self.labels: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def images(self) -> Iterator[Image]:
        """Those that can be decoded; afterwards ``labels`` (N,) are theirs.

        Raises:
            SourceError: none can be.
        """
        labels: list[int] = []
        for path, label in self.files:
            try:
                image = read_image(path)
            except SourceError:
                continue
            labels.append(label)
            yield image
        if not labels:
            raise SourceError(f"none of the {len(self.files)} images in {self.name} can be decoded: check one by hand")
        self.labels = np.array(labels, np.int64)

    def measured(self) -> MeasuredSet:
        """What the report says of it."""
        return MeasuredSet(self.name, len(self.labels), len(self.classes), len(self.files) - len(self.labels))


def read_sets(data: Path, shifts: Sequence[Path], names: Path | None) -> list[DecodedSet]:
    """The target set, then the shift sets; raises as :class:`DecodedSet`."""
    target = DecodedSet(data, names)
    named = set(json.loads(names.read_text(encoding="utf-8"))) if names else set()
    return [target, *(DecodedSet(shift, names if named & _folders(shift) else None) for shift in shifts)]


def measure_wise(
    way: CheckpointsBetween,
    sets: Sequence[DecodedSet],
    options: WiseOptions,
    *,
    progress: Progress | None = None,
) -> WiseReport:
    """Zero-shot top-1 of every model on the way, on every set.

    A tower that both checkpoints share is run once over each image or text. One that differs is run for every alpha.

    Args:
        sets: from :func:`read_sets`.
        progress: called with (images done, images in all), over all runs of the image tower.

    Raises:
        InputError: an alpha outside [0, 1], or none.
        SourceError: a set none of whose images can be decoded.
    """
    alphas = sorted(set(options.alphas))
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise InputError(
            f"expected alphas from 0 (zero-shot) to 1 (fine-tuned), got {', '.join(map(str, options.alphas)) or 'none'}"
        )
    way.to("cuda" if torch.cuda.is_available() else "cpu")
    files = sum(len(item.files) for item in sets)
    runs = 1 if "image" in way.shared else len(alphas)
    texts: TextFeatures | None = None
    features: npt.NDArray[np.float16] | None = None
    results: list[AlphaResult] = []
    for run, alpha in enumerate(alphas):
        model = way.at(alpha)
        if features is None or "image" not in way.shared:
            tower = ImageTower(model.image, model.image_width, model.preprocess)
            watch = _watch(progress, before=run * files, total=runs * files)
            features = features_of(tower, (image for item in sets for image in item.images()), progress=watch)
        if texts is None or "text" not in way.shared:
            texts = TextFeatures(_text_features(model))
        hits = _hits(model, sets, features, _Texts(model, texts), options.templates)
        accuracies = [Accuracy(found.mean().item(), wilson_interval(int(found.sum()), len(found))) for found in hits]
        results.append(AlphaResult(alpha, accuracies[0], accuracies[1:], mean_of(accuracies[1:])))
    return WiseReport(
        zero_shot=way.zero_shot,
        fine_tuned=way.fine_tuned,
        shared=sorted(way.shared),
        target=sets[0].measured(),
        shifts=[item.measured() for item in sets[1:]],
        templates=options.templates,
        results=results,
        best=max(results, key=lambda result: (result.target.top1, -result.alpha)).alpha,
        rule=RULE,
        machine=describe_machine(),
    )


class _Texts:
    """The text side of one model as the encoder that a table builder wants, over features that may be another's."""

    def __init__(self, model: TwoTower, features: TextFeatures) -> None:
        self._model, self._features = model, features

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings (N, D) float32."""
        embeddings: FloatArray = self._model.encode_text(self._features(texts)).float().cpu().numpy()
        return embeddings


def _text_features(model: TwoTower) -> Callable[[Sequence[str]], torch.Tensor]:
    def encode(texts: Sequence[str]) -> torch.Tensor:
        with torch.no_grad():
            return model.text_features(model.tokenize(texts).to(model.logit_scale.device))

    return encode


def _hits(
    model: TwoTower,
    sets: Sequence[DecodedSet],
    features: npt.NDArray[np.float16],
    texts: _Texts,
    templates: Sequence[str],
) -> list[npt.NDArray[np.bool_]]:
    """Of each set, which images (N,) are nearest to their own class; a tie is no hit."""
    with torch.no_grad():
        whole = torch.from_numpy(features.astype(np.float32)).to(model.logit_scale.device)  # (N, F) of all sets
        embeddings = unit_rows(model.encode_image(whole).float().cpu().numpy())  # (N, D)
    hits, first = [], 0
    for item in sets:
        rows = build_table(texts, item.classes, templates, name="set", model_id="").embeddings  # (C, D)
        own = embeddings[first : first + len(item.labels)]
        hits.append(true_class_ranks(own @ rows.T, item.labels) == 0)
        first += len(own)
    return hits


def _watch(progress: Progress | None, *, before: int, total: int) -> Callable[[int], None] | None:
    return (lambda done: progress(before + done, total)) if progress else None


def _folders(data: Path) -> set[str]:
    return {item.name for item in data.iterdir() if item.is_dir()} if data.is_dir() else set()
