"""Nouns with the classes that they mean in, a text projection that knows them out; no image is looked at."""

from __future__ import annotations

import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import normalize

from edgeclip.training.heads import ConceptHead
from edgeclip.training.starter_recipe import Words
from edgeclip.training.word_targets import WordTargets

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
