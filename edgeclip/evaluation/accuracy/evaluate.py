"""A bundle and labelled or captioned images in; accuracy and retrieval of its variants, with intervals, out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeclip.bundle import BundleLike, open_bundle
from edgeclip.class_names import split_names
from edgeclip.errors import InputError
from edgeclip.evaluation.accuracy.report import EvalReport
from edgeclip.evaluation.accuracy.retrieval import RetrievalResult, evaluate_retrieval
from edgeclip.evaluation.accuracy.zeroshot import ZeroShotResult, evaluate_set
from edgeclip.evaluation.data.class_sets import set_templates
from edgeclip.evaluation.data.dataset import open_captioned, open_labelled


def evaluate(
    bundle: BundleLike,
    data: str | os.PathLike[str] | None = None,
    *,
    captions: str | os.PathLike[str] | None = None,
    variants: str | Sequence[str] = ("fp32",),
    engine: str = "onnxruntime",
    against: str | None = None,
    classes: str = "",
    names: str | os.PathLike[str] | None = None,
    templates: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> EvalReport:
    """Zero-shot accuracy and retrieval with 95 % intervals, by class and by confusion. Can be stopped and run again.

    Args:
        bundle: opened, or its path.
        data: labelled images: a folder with one folder a class, WebDataset tars, CSV, TSV or JSONL.
        captions: captioned images, for retrieval: JSONL, CSV, TSV or WebDataset tars.
        variants: forms of the encoder; a list, or "fp32, int8".
        engine: name of an inference engine.
        against: another variant, whose difference on the same images is told with its interval.
        classes: a set whose usual class names and templates to take: ``imagenet``, ``cifar10``, ``flowers``, …
        names: a file of class names: JSON folder → name or names, a list in order, or a file of sets.
        templates: ``simple``, ``imagenet`` (CLIP's 80), or a file; by default those of ``classes``, or ``simple``.
        progress: called with (what is read, images done, images in all).

    Raises:
        InputError: neither ``data`` nor ``captions``, or labels that do not fit the names.
        SourceError: no image can be decoded.
        BundleError, EngineError: a variant that is not there or does not run here.
    """
    if data is None and captions is None:
        raise InputError("expected data, captions or both, got neither: say what to measure on")
    opened = open_bundle(bundle)
    wanted = list(dict.fromkeys(split_names(variants)))
    if not wanted:
        raise InputError("expected a variant to measure, got an empty list: fp32, say")
    for name in wanted:
        opened.variant(name)
    prompts = set_templates(templates, classes)
    labelled = None
    if data is not None:
        labelled = open_labelled(os.fspath(data), None if names is None else Path(names), class_set=classes)
    captioned = None if captions is None else open_captioned(os.fspath(captions))

    def watch(what: str) -> Callable[[int, int], None] | None:
        return (lambda done, total: progress(what, done, total)) if progress else None

    accuracies: list[ZeroShotResult] = []
    if labelled:
        accuracies = evaluate_set(
            opened,
            labelled,
            templates=prompts,
            variants=wanted,
            engine=engine,
            against=against,
            progress=watch("images"),
        )
    retrievals: list[RetrievalResult] = []
    for name in wanted if captioned else ():
        assert captioned
        shown = watch(f"captioned images, {name}")
        retrievals.append(evaluate_retrieval(opened, captioned, variant=name, engine=engine, progress=shown))
    return EvalReport(accuracies, retrievals)
