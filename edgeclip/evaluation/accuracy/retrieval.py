"""A bundle and captioned images in, how often a caption finds its image and an image one of its captions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.devices.machine.probe import Description, describe_machine
from edgeclip.evaluation.data.dataset import CaptionedSet
from edgeclip.evaluation.statistics.metrics import Recall, image_to_text_ranks, recall, text_to_image_ranks
from edgeclip.export.prompt_table import table_for_bundle
from edgeclip.prompts import FloatArray, PromptClass

Progress = Callable[[int, int], None]


class RetrievalResult(msgspec.Struct, frozen=True):
    """Retrieval over a captioned set.

    Attributes:
        data: the set.
        images, captions: how many of each were searched.
        failed: images that could not be read; their captions are left out.
        failures: which, and why.
        text_to_image: a caption looks for its image among all; intervals by bootstrap over images.
        image_to_text: an image looks for any of its captions among all; Wilson's intervals.
        model_id, variant, engine: what was measured.
        machine: what it was measured on.
    """

    data: str
    images: int
    captions: int
    failed: int
    text_to_image: Recall
    image_to_text: Recall
    model_id: str
    variant: str
    engine: str
    machine: Description
    failures: tuple[str, ...] = ()


def evaluate_retrieval(
    bundle: Bundle,
    data: CaptionedSet,
    *,
    variant: str = "fp32",
    engine: str = "onnxruntime",
    progress: Progress | None = None,
) -> RetrievalResult:
    """Search every caption's image and every image's captions. A tie counts as a miss.

    Args:
        progress: called with (images done, images in all).

    Raises:
        SourceError: no image can be decoded.
        ModelError: the text encoder cannot be loaded.
        VariantError, EngineError: as the bundle and the engine say.
    """
    texts = caption_rows(bundle, data.captions)
    wrong = list(data.damaged.named)
    images, keep = image_embeddings(
        bundle, variant, data.items, engine=engine, progress=progress, passed_over=wrong.append
    )
    searched = keep[data.own]
    row_of = np.cumsum(keep) - 1  # of an image among those that were read
    own, texts, images = row_of[data.own[searched]], texts[searched], images[keep]
    return RetrievalResult(
        data=data.name,
        images=len(images),
        captions=len(texts),
        failed=int((~keep).sum()) + data.damaged.count,
        text_to_image=recall(text_to_image_ranks(texts, images, own), own),
        image_to_text=recall(image_to_text_ranks(texts, images, own)),
        model_id=bundle.manifest.model.id,
        variant=variant,
        engine=engine,
        machine=describe_machine(),
        failures=tuple(wrong),
    )


def caption_rows(bundle: Bundle, captions: Sequence[str]) -> FloatArray:
    """Unit rows (M, D) of texts as they are, from the bundle's text encoder or its cache."""
    # A table with a class for each text: encoded in batches of like length, and cached.
    classes = [PromptClass(str(row), (text,)) for row, text in enumerate(captions)]
    return table_for_bundle(bundle, classes, ("{}",), name="captions").embeddings
