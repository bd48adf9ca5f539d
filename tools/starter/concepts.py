"""WordNet's nouns and an image tower's classes in, a text projection that knows the nouns out; no image is looked at.

``word_targets`` says how much each noun means each class, ``fit_concepts`` teaches a projection that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import normalize

from edgeclip.errors import RecipeError
from edgeclip.extras import require
from edgeclip.training.towers.heads import ConceptHead
from edgeclip.training.towers.sentence import SentenceEncoder
from tools.starter.caption_vectors import encode_cached
from tools.starter.recipe import Words
from tools.starter.wordnet import WordNet

TEMPLATES = ("{}", "a photo of a {}.")
_LIKENESS_SHARPNESS = 7.5  # of the softmax over mean likenesses, which lie between -1 and 1
_SENSE_DECAY, _SENSES = 0.5, 3  # a noun's second sense counts half as much as its first, and so on


class WordTargets(NamedTuple):
    """What the text projection learns from.

    Attributes:
        nouns: (M, 2, T) sentence vectors of M nouns, alone and as a photograph's caption.
        noun_classes: (M, C) which classes each means; rows sum to 1.
        class_classes: (C, C) the same of the classes themselves.
        glosses: (G, T) sentence vectors of definitions.
    """

    nouns: Tensor
    noun_classes: Tensor
    class_classes: Tensor
    glosses: Tensor


def word_targets(
    wordnet: WordNet, names: Tensor, centre: Tensor, tower: SentenceEncoder, bars: Progress
) -> WordTargets:
    """Spread every noun that can be photographed over the classes that it is akin to.

    Nouns are those of the senses that ImageNet-21k has pictures of. A sense is as much like a class as the mean of
    three likenesses: their places in WordNet's tree (Lin), and the cosines of the noun and the class's name and of
    their definitions as the text tower sees them. The first makes a hedgehog akin to a porcupine; the others know what
    the tree has far apart, as a fire engine and a firefighter.

    Args:
        names: (C, T) unit, centred vectors of the names of ImageNet's thousand classes, in the order of their ids.
        centre: (T,) what was subtracted.

    Raises:
        RecipeError: the image tower's classes are not ImageNet's.
    """
    info = require("timm.data", purpose="list ImageNet's classes").ImageNetInfo
    classes = list(info("imagenet-1k").label_names())
    if len(names) != len(classes):
        raise RecipeError(f"expected an image tower with ImageNet's {len(classes)} classes for words, got {len(names)}")
    senses = [
        sense for sense in dict.fromkeys([*info("imagenet-22k").label_names(), *classes]) if sense in wordnet.senses
    ]
    row_of = {sense: row for row, sense in enumerate(senses)}
    class_rows = torch.tensor([row_of[sense] for sense in classes])
    nouns = sorted({noun for sense in senses for noun in wordnet.senses[sense].nouns})

    texts = [template.replace("{}", noun) for noun in nouns for template in TEMPLATES]
    vectors = encode_cached(tower, texts, bars).reshape(len(nouns), len(TEMPLATES), tower.width)
    definitions = [f"{wordnet.senses[sense].nouns[0]}: {wordnet.senses[sense].gloss}" for sense in senses]
    glosses = encode_cached(tower, definitions, bars)

    in_tree = torch.from_numpy(wordnet.likeness(senses, classes))  # (S, C)
    centred_glosses = normalize(glosses - glosses.mean(dim=0), dim=-1)
    by_gloss = centred_glosses @ centred_glosses[class_rows].T  # (S, C)
    by_name = normalize(vectors.mean(dim=1) - centre, dim=-1) @ names.T  # (M, C)
    of_senses = in_tree + by_gloss

    def spread(likeness: Tensor) -> Tensor:
        return torch.softmax(_LIKENESS_SHARPNESS * likeness / 3, dim=-1)

    noun_classes = torch.empty(len(nouns), len(classes))
    for row, noun in enumerate(nouns):
        meant = torch.tensor([row_of[sense] for sense in wordnet.senses_of[noun] if sense in row_of][:_SENSES])
        weights = _SENSE_DECAY ** torch.arange(len(meant))
        noun_classes[row] = (weights / weights.sum()) @ spread(of_senses[meant] + by_name[row])
    return WordTargets(vectors, noun_classes, spread(of_senses[class_rows] + names @ names.T), glosses)


_SHARPNESS = 5.0  # of a fresh head's softmax over cosines to the classes' names
_GLOSS_SHARPNESS = 10.0
_LENGTH = 8.0  # of a fresh head's embeddings; only the direction of the result counts
_NAMES = 1 / 8  # share of a batch that are class names
_WEIGHT_DECAY = 1e-3


class ClassSpace:
    """The D directions in which distributions over classes differ most.

    A distribution goes in by its square roots (as in Hellinger's distance, so that a few large shares do not decide
    alone), centred and of unit length.

    Attributes:
        directions: (C, D) orthonormal; row c is the place of class c.
    """

    def __init__(self, targets: WordTargets, width: int) -> None:
        self._centre = targets.noun_classes.sqrt().mean(dim=0)
        nouns, classes = self._rooted(targets.noun_classes), self._rooted(targets.class_classes)
        spread = nouns.T @ nouns / len(nouns) + classes.T @ classes / len(classes)  # (C, C)
        self.directions = torch.linalg.eigh(spread).eigenvectors[:, -width:].contiguous()

    def place(self, distributions: Tensor) -> Tensor:
        """(N, C) → unit rows (N, D)."""
        return normalize(self._rooted(distributions) @ self.directions, dim=-1)

    def _rooted(self, distributions: Tensor) -> Tensor:
        return normalize(distributions.sqrt() - self._centre, dim=-1)


def fit_concepts(
    targets: WordTargets, names: Tensor, centre: Tensor, captions: Tensor, settings: Words, width: int, bars: Progress
) -> tuple[ConceptHead, Tensor]:
    """Fit a text projection to the places of nouns, class names and definitions in a space of ``width`` dimensions.

    Args:
        names: (C, T) unit, centred vectors of the classes' names.
        centre: (T,) what was subtracted.
        captions: (C, P, T) sentence vectors of the classes' names in P templates.

    Returns:
        The projection, and where it put each class: (C, width) rows, of lengths up to 1.
    """
    space = ClassSpace(targets, width)
    noun_places, class_places = space.place(targets.noun_classes), space.place(targets.class_classes)
    by_gloss = normalize(targets.glosses - centre, dim=-1) @ names.T  # (G, C)
    gloss_places = space.place(torch.softmax(_GLOSS_SHARPNESS * by_gloss, dim=-1))

    classes, prompts = captions.shape[:2]
    head = ConceptHead(captions.shape[2], classes, width)
    with torch.no_grad():
        head.centre.copy_(centre)
        head.concepts.weight.copy_(_SHARPNESS * names)
        head.concepts.bias.zero_()
        head.embeddings.weight.copy_(_LENGTH * space.directions.T)
        head.embeddings.bias.copy_(-_LENGTH * targets.noun_classes.mean(dim=0) @ space.directions)

    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps)
    of_names, of_glosses = int(settings.batch_size * _NAMES), int(settings.batch_size * settings.glosses)
    of_nouns = settings.batch_size - of_names - of_glosses
    task = bars.add_task("words", total=settings.steps)
    for _ in range(settings.steps):
        noun = torch.randint(len(noun_places), (of_nouns,))
        name = torch.randint(classes, (of_names,))
        gloss = torch.randint(len(gloss_places), (of_glosses,))
        said = torch.cat(
            [
                targets.nouns[noun, torch.randint(targets.nouns.shape[1], noun.shape)],
                captions[name, torch.randint(prompts, name.shape)],
                targets.glosses[gloss],
            ]
        )
        places = torch.cat([noun_places[noun], class_places[name], gloss_places[gloss]])
        loss = (1 - (normalize(head(said), dim=-1) * places).sum(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        bars.update(task, advance=1, description=f"words  loss {loss.item():.3f}")
    return head.requires_grad_(requires_grad=False), space.directions
