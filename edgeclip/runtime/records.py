"""What the loop says of a frame: scored labels, views of a frame, events, and the record that sinks receive."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

UNKNOWN = "unknown"


class Scored(NamedTuple):
    """One label with its score in [0, 1]."""

    label: str
    score: float


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """A label came or went.

    Attributes:
        kind: ``"enter"`` when a label has been there for the minimum dwell, ``"leave"`` when it has been gone for it.
        label: the class.
        frame: index of the frame that decided it.
        time_s: presentation time of that frame, seconds.
        start_s: presentation time of the first frame of the stay, seconds.
        end_s: of its last frame; only for ``"leave"``.
        score: smoothed score in the deciding frame.
        peak: highest smoothed score of the stay so far.
        table, region, source: what it was seen with and where; empty where there is only one.
    """

    kind: Literal["enter", "leave"]
    label: str
    frame: int
    time_s: float
    start_s: float
    score: float
    peak: float
    end_s: float | None = None
    table: str = ""
    region: str = ""
    source: str = ""


class Failed(msgspec.Struct, frozen=True):
    """An image or frame that could not be labelled.

    Attributes:
        name: the image's file, or the frame by its number.
        reason: why.
    """

    name: str
    reason: str


class View(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one table says of one region of a frame.

    Attributes:
        table: name of the prompt table.
        region: name of the region; empty for the whole frame.
        label, score: the best class, or ``unknown``, and its score in [0, 1].
        top: the best classes, best first.
        present: classes that have entered and not yet left.
        calibrated: ``score`` is the calibrated probability that the best class is right.
    """

    table: str
    region: str
    label: str
    score: float
    top: list[Scored]
    present: list[str] = []
    calibrated: bool = False


class LabelledFrame(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is said of one frame; one line of the JSONL.

    Attributes:
        frame: index in the source.
        time_s: presentation time, seconds.
        label, score: the best class of the first view, or ``unknown``, and its score in [0, 1].
        top: the best classes of the first view, best first.
        encode_ms: from handing the frame to the engine to its embedding, milliseconds; 0 where the encoder was skipped.
        latency_ms: from the frame being there (decoded, or delivered by a camera) to its label, milliseconds.
        source: name of the source, where there are several.
        file: image file, for images in a folder only.
        gated: the frame had not changed, so its embedding is that of the last encoded one.
        present: classes of the first view that have entered and not yet left.
        events: what came or went with this frame, in any view.
        calibrated: ``score`` is the calibrated probability that the best class is right.
        views: every view, where there is more than one (several tables or regions); the first is the one above.
    """

    frame: int
    time_s: float
    label: str
    score: float
    top: list[Scored]
    encode_ms: float
    latency_ms: float = 0.0
    source: str = ""
    file: str | None = None
    gated: bool = False
    present: list[str] = []
    events: list[Event] = []
    calibrated: bool = False
    views: list[View] = []
