"""WordNet's nouns and an image tower's classes in, how much each noun means each class out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import normalize

from edgeclip.errors import RecipeError
from edgeclip.extras import require
from edgeclip.training.caption_vectors import encode_cached
from edgeclip.training.towers import MiniLm
from edgeclip.training.wordnet import WordNet

TEMPLATES = ("{}", "a photo of a {}.")
_SHARPNESS = 7.5  # of the softmax over mean likenesses, which lie between -1 and 1
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


def word_targets(wordnet: WordNet, names: Tensor, centre: Tensor, tower: MiniLm, bars: Progress) -> WordTargets:
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
        return torch.softmax(_SHARPNESS * likeness / 3, dim=-1)

    noun_classes = torch.empty(len(nouns), len(classes))
    for row, noun in enumerate(nouns):
        meant = torch.tensor([row_of[sense] for sense in wordnet.senses_of[noun] if sense in row_of][:_SENSES])
        weights = _SENSE_DECAY ** torch.arange(len(meant))
        noun_classes[row] = (weights / weights.sum()) @ spread(of_senses[meant] + by_name[row])
    return WordTargets(vectors, noun_classes, spread(of_senses[class_rows] + names @ names.T), glosses)
