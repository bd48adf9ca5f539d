"""Embeddings of unlabelled footage in; the words that describe it, and from which score on a label is rare there, out.

Nothing here knows a label. What it assumes, and what follows, is said in ``footage_notes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

from edgeclip.decisions import ClassDecision, DecisionFacts, Decisions
from edgeclip.errors import InputError
from edgeclip.key_cache import FloatArray
from edgeclip.prompts import PromptTable, parse_classes
from edgeclip.runtime.scoring import Scorer
from edgeclip.spec import EncoderSpec

_NEAR = 0.8  # cosine of a word to a class from which on it may be the class by another name
_FEWEST = 20


@dataclass(frozen=True)
class FootageOptions:
    """What is asked of unlabelled footage.

    Attributes:
        label_rate: the share of its frames that may get a label, in (0, 1).
        background: how many words to take for what the site looks like; 0 for none.

    Raises:
        InputError: a value out of range.
    """

    label_rate: float = 0.01
    background: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.label_rate < 1:
            raise InputError(f"expected a label rate above 0 and below 1, got {self.label_rate}")
        if self.background < 0:
            raise InputError(f"expected 0 or more background words, got {self.background}")


def vocabulary() -> list[str]:
    """The words that a site is described by unless others are given."""
    path = resources.files("edgeclip") / "assets" / "background_words.txt"
    with resources.as_file(path) as file:
        return [item.label for item in parse_classes(str(file))]


def describe_site(
    frames: FloatArray, words: FloatArray, classes: FloatArray, *, logit_scale: float, count: int
) -> list[int]:
    """Which words describe footage best, together: greedily, each the one that adds most to how well it is explained.

    A frame is explained by the softmax's share of the chosen words among them and the classes; the mean of its
    logarithm over frames is maximised. Words within a cosine of 0.8 of a class are passed over.

    Args:
        frames: (N, D) unit rows.
        words: (W, D) unit rows.
        classes: (C, D) unit rows of what is looked for.
        count: how many; fewer if no further word adds anything.

    Returns:
        Rows of ``words``, best first.
    """
    allowed = (words @ classes.T).max(axis=1) < _NEAR
    logits = logit_scale * (frames @ words.T).astype(np.float64)  # (N, W)
    rivals = logit_scale * (frames @ classes.T).astype(np.float64)
    top = np.maximum(logits.max(axis=1), rivals.max(axis=1))[:, None]
    weights, against = np.exp(logits - top), np.exp(rivals - top).sum(axis=1)  # (N, W), (N,)
    explained = np.zeros(len(frames))
    chosen: list[int] = []
    gained = -np.inf
    for _ in range(min(count, int(allowed.sum()))):
        own = explained[:, None] + weights
        gain = np.log(own / (own + against[:, None])).mean(axis=0)
        gain[~allowed] = -np.inf
        gain[chosen] = -np.inf
        word = int(gain.argmax())
        if gain[word] <= gained + 1e-3:
            break
        gained = float(gain[word])
        chosen.append(word)
        explained += weights[:, word]
    return chosen


def require_frames(count: int, options: FootageOptions) -> None:
    """Refuse footage that is too short for the label rate.

    Raises:
        InputError: with what was expected and got.
    """
    needed = max(_FEWEST, int(np.ceil(1 / options.label_rate)) - 1)
    if count < needed:
        raise InputError(
            f"expected at least {needed} frames for a label rate of {options.label_rate:g}, got {count}: give more "
            "footage, sample it more often (`every`), or allow a higher rate"
        )


def fit_footage(
    table: PromptTable,
    encoder: EncoderSpec,
    frames: FloatArray,
    options: FootageOptions,
    *,
    variant: str,
    graph: str,
    engine: str = "",
) -> Decisions:
    """A threshold that a share of at most ``label_rate`` of frames like these reaches, for all classes.

    For a further frame that is as likely to be any of these, the chance of a label is at most the rate (split conformal
    prediction; Vovk et al. 2005): the k-th largest score is taken, k = ⌊rate · (N + 1)⌋.

    Raises:
        InputError: too few frames for the rate.
    """
    require_frames(len(frames), options)
    scorer = Scorer(table, encoder)
    scores = scorer.scores(frames)
    best = scores.argmax(axis=1)
    reported = np.where([scorer.is_background(row) for row in best], 0.0, scores.max(axis=1))
    allowed = int(options.label_rate * (len(frames) + 1))
    value = float(np.sort(reported)[::-1][allowed - 1])
    threshold = min(1.0, max(float(np.nextafter(np.float32(value), np.float32(2))), 1e-6))
    classes = {
        label: ClassDecision(threshold=threshold)
        for row, label in enumerate(scorer.labels)
        if not scorer.is_background(row)
    }
    figures = {
        "frames": float(len(frames)),
        "background_share": float((reported == 0).mean()),
        "threshold": threshold,
    }
    facts = DecisionFacts(
        variant=variant,
        graph=graph,
        rows=table.rows_hash,
        classes=classes,
        calibrated=False,
        label_rate=options.label_rate,
        figures=figures,
        engine=engine,
    )
    return Decisions(facts)


def footage_notes(options: FootageOptions) -> list[str]:
    """What the unsupervised fit assumes, and what it cannot say."""
    return [
        "it is assumed that the footage shows next to nothing of the classes: what it does show of them raises the "
        "threshold, and is missed later",
        f"at most {options.label_rate:.2%} of frames like these get a label, if later frames are like these; "
        "neighbouring frames are alike, so a few long scenes count for less than their number",
        "nothing is known of precision or recall, and scores are not probabilities: for these, label some images",
    ]


def best_scores(scorer: Scorer, frames: FloatArray) -> npt.NDArray[np.float64]:
    """The score (N,) of each frame's best class of interest among all rows: what tells known frames from others."""
    scores = scorer.scores(frames)
    rows = [row for row in range(len(scorer.labels)) if not scorer.is_background(row)]
    best: npt.NDArray[np.float64] = scores[:, rows].max(axis=1).astype(np.float64)
    return best
