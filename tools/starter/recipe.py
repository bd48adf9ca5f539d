"""The starter's recipe: locked towers, linear projections, a start from the image tower's own classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgeclip.spec import Name
from edgeclip.training.recipe import Count, Fraction, Positive, Section
from edgeclip.training.recipe_file import convert, read_tree


class StarterData(Section, frozen=True, kw_only=True):
    """Labelled images.

    Attributes:
        shards: glob of WebDataset tars, relative to the working directory.
        classes: JSON with the names of each class, in label order.
        views: sides in pixels that an image is first shrunk to, 0 for the image as it is; each is a view of its own.
    """

    shards: str
    classes: str
    views: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = (0,)


class Captions(Section, frozen=True, kw_only=True):
    """What is said of an image.

    Attributes:
        templates: as ``--templates`` takes them.
        own_predictions: share of captions whose class is drawn from the image tower's own ImageNet prediction instead
            of the label: what the tower knows already is rehearsed, and a thousand names are heard instead of a few.
    """

    templates: str = "simple"
    own_predictions: Fraction = 0.0


class Words(Section, frozen=True, kw_only=True):
    """Nouns of WordNet, from which the text projection learns what names are akin to, before it sees an image.

    Attributes:
        wordnet: folder with ``data.noun`` and ``index.noun``; Debian's package ``wordnet-base`` puts them there.
        steps, batch_size: how long and how many texts a step.
        lr: highest of the one-cycle schedule.
        glosses: share of a batch that are definitions, so that sentences stay where they are.
    """

    wordnet: str = "/usr/share/wordnet"
    steps: Count = 900
    batch_size: Annotated[int, msgspec.Meta(ge=8)] = 1024
    lr: Positive = 2e-3
    glosses: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.2


class Init(Section, frozen=True, kw_only=True):
    """Start of the image projection, from the image tower's own classifier and its class names' embeddings.

    Attributes:
        class_scale: weight of the class probabilities beside the pooled features.
        ridge: of the inverse that maps features to class embeddings; larger is smoother.
    """

    class_scale: Positive = 0.5
    ridge: Positive = 1.0


class StarterOptimizer(Section, frozen=True, kw_only=True):
    """AdamW with warm-up and cosine decay.

    Attributes:
        steps, batch_size: how long and how many pairs a step.
        lr: of the projections.
        logit_scale_lr: of the logarithm of the temperature's inverse.
        logit_scale, max_logit_scale: where it starts and is clamped (CLIP clamps at 100).
        ema: decay of the averaged weights, which are what is kept.
        interpolate: share of the trained weights in the result, the rest being the start (WiSE-FT, Wortsman 2022).
    """

    steps: Count = 300
    batch_size: Annotated[int, msgspec.Meta(ge=2)] = 256
    lr: Positive = 5e-5
    warmup: Count = 20
    logit_scale_lr: Positive = 5e-3
    logit_scale: Positive = 20.0
    max_logit_scale: Positive = 100.0
    ema: Fraction = 0.98
    interpolate: Fraction = 1.0


class StarterRecipe(Section, frozen=True, kw_only=True):
    """Everything that determines a run of the task ``starter``.

    Attributes:
        image_tower, text_tower: as a recipe's ``model`` names them; both are locked.
        embedding_dim: width of the shared space.
        weight_grid: keep all weights on an 8-bit grid, so that they can be stored in a quarter of the space.
        words: learn the text projection from WordNet and keep it; by default it is linear and trained on the captions.
    """

    name: Name
    image_tower: str
    text_tower: str
    embedding_dim: Count
    data: StarterData
    task: Literal["starter"] = "starter"
    seed: int = 0
    weight_grid: bool = False
    captions: Captions = Captions()
    init: Init = Init()
    words: Words | None = None
    optimizer: StarterOptimizer = StarterOptimizer()


def load_starter_recipe(path: Path, *, overrides: Sequence[str] = ()) -> StarterRecipe:
    """Read and check a recipe of the starter.

    Args:
        overrides: as ``load_recipe`` takes them.

    Raises:
        RecipeError: absent, not YAML, an unknown key or a bad value.
    """
    return convert(read_tree(path, overrides=overrides), StarterRecipe, source=str(path))
