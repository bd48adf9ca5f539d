"""A recipe in, a checkpoint out: two locked towers, projections of their features, one contrastive loss.

    python -m tools.starter.train tools/starter/starter.yaml --output runs/starter

``--set optimizer.lr=1e-3`` overrides a value, ``--overwrite`` replaces an earlier checkpoint.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import normalize

from edgeclip.errors import EdgeclipError, InputError, TrainingError
from edgeclip.extras import require
from edgeclip.files import write_text
from edgeclip.prompts import load_templates
from edgeclip.training.checkpoint.checkpoint import save_checkpoint
from edgeclip.training.checkpoint.weight_grid import to_grid, without_negative_zeros
from edgeclip.training.data.labelled import read_class_names
from edgeclip.training.data.shards import ShardPairs
from edgeclip.training.loop.loss import info_nce
from edgeclip.training.loop.run import FILE as LOG
from edgeclip.training.recipe import Model, Tower
from edgeclip.training.towers.build import build_image_tower, build_text_tower
from edgeclip.training.towers.heads import ConceptHead, ImageHead
from edgeclip.training.towers.pretrained import ImageTower
from edgeclip.training.towers.sentence import SentenceEncoder
from edgeclip.training.two_tower import TwoTower
from tools.starter.caption_vectors import CaptionVectors
from tools.starter.concepts import fit_concepts, word_targets
from tools.starter.features import cached_features
from tools.starter.recipe import StarterRecipe, Words, load_starter_recipe
from tools.starter.start import start_from_captions, start_from_classes
from tools.starter.wordnet import read_wordnet

_FEATURES_FOR_SCALE = 2000
_LOSS_WINDOW = 20


def train_starter(recipe: StarterRecipe, target: Path, *, console: Console, overwrite: bool = False) -> None:
    """Train the projections of a recipe; write the checkpoint folder, with every step's loss in its ``log.jsonl``.

    Raises:
        InputError: ``target`` exists and ``overwrite`` is false.
        TrainingError: no usable data, labels without names, or a loss that is not finite (with the step).
    """
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already: choose another --output or pass --overwrite")
    console.print(msgspec.json.format(msgspec.json.encode(recipe), indent=2).decode(), highlight=False)
    torch.manual_seed(recipe.seed)
    settings = recipe.optimizer
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        # Towers, locked.
        model = Model(
            image=Tower(name=recipe.image_tower, locked=True, options={"on_grid": recipe.weight_grid}),
            text=Tower(name=recipe.text_tower, locked=True),
            embedding_dim=recipe.embedding_dim,
        )
        tower, sentences = build_image_tower(model.image), build_text_tower(model.text)
        assert isinstance(sentences, SentenceEncoder)

        # Features of every image in every view, and the captions that can be said of them.
        class_names = read_class_names(Path(recipe.data.classes))
        views, labels = _load_views(recipe, tower, len(class_names), bars)
        first_names = [names[0].lower() for names in class_names]
        imagenet = require("open_clip", purpose="name the ImageNet classes of the image tower's classifier")
        tower_names = [name.lower() for name in imagenet.IMAGENET_CLASSNAMES]
        templates = load_templates(recipe.captions.templates)
        captions = CaptionVectors(sentences, list(dict.fromkeys(first_names + tower_names)), templates, bars)
        label_rows, tower_rows = captions.rows(first_names), captions.rows(tower_names)  # (classes,), (C,)

        # Projections, started from the image tower's own classifier.
        text_head: nn.Linear | ConceptHead
        if recipe.words is None:
            places = None
            text_head = start_from_captions(captions.vectors.flatten(0, 1), recipe.embedding_dim)
        else:
            text_head, places = _learn_words(recipe, recipe.words, sentences, captions.vectors[tower_rows], bars)
        head = ImageHead(tower, recipe.embedding_dim, on_grid=recipe.weight_grid)
        class_embeddings = normalize(text_head(captions.vectors).detach().mean(dim=1), dim=-1)  # (V, D)
        start_from_classes(
            head,
            class_embeddings[tower_rows],
            views[0][:_FEATURES_FOR_SCALE].float(),
            class_scale=recipe.init.class_scale,
            ridge=recipe.init.ridge,
            places=places,
        )
        trained = [*head.from_classes.parameters(), *head.from_features.parameters()]
        trained += [parameter for parameter in text_head.parameters() if parameter.requires_grad]
        start = [parameter.detach().clone() for parameter in trained]
        average = [parameter.detach().clone() for parameter in trained]
        log_scale = nn.Parameter(torch.tensor(math.log(settings.logit_scale)))
        groups = [{"params": trained, "lr": settings.lr}, {"params": [log_scale], "lr": settings.logit_scale_lr}]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_cosine(step, recipe))

        task = bars.add_task("steps", total=settings.steps)
        log: list[dict[str, float]] = []
        for step in range(settings.steps):
            # Images: each from one of its views. What is said of them: the label, or what the tower itself sees.
            images = torch.randint(len(labels), (settings.batch_size,))
            view = torch.randint(len(views), (settings.batch_size,))
            features = torch.stack([views[v][i] for v, i in zip(view.tolist(), images.tolist(), strict=True)]).float()
            with torch.no_grad():
                seen = torch.softmax(head.classifier(views[0][images].float()), dim=-1)  # (N, C)
                own = tower_rows[torch.multinomial(seen, 1).squeeze(1)]
            use_own = torch.rand(settings.batch_size) < recipe.captions.own_predictions
            rows = torch.where(use_own, own, label_rows[labels[images]])  # (N,)
            said = captions.vectors[rows, torch.randint(len(templates), rows.shape)]  # (N, W)

            image_embeddings = normalize(head(features), dim=-1)  # (N, D)
            text_embeddings = normalize(text_head(said), dim=-1)  # (N, D)
            scale = log_scale.exp().clamp(max=settings.max_logit_scale)
            loss = info_nce(image_embeddings, text_embeddings, scale, rows)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} at step {step} (images {images[:5].tolist()}…): lower optimizer.lr"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            for kept, parameter in zip(average, trained, strict=True):
                kept.lerp_(parameter.detach(), 1 - settings.ema)
            log.append({"step": step + 1, "loss": loss.item(), "logit_scale": scale.item()})
            bars.update(task, advance=1, description=f"steps  loss {_recent_loss(log):.3f}")

        # Averaged weights, part of the way back to the start, on the grid if the recipe wants them there.
        for parameter, first, kept in zip(trained, start, average, strict=True):
            result = torch.lerp(first, kept, settings.interpolate)
            on_grid = recipe.weight_grid and result.dim() == 2
            parameter.data = without_negative_zeros(to_grid(result)) if on_grid else result
        head.classifier.weight.data = without_negative_zeros(head.classifier.weight.data)
    final_loss = _recent_loss(log)
    two_tower = TwoTower(
        tower.module,
        head,
        sentences,
        text_head,
        preprocess=tower.preprocess,
        model=model,
        logit_scale=float(log_scale.detach().exp().clamp(max=settings.max_logit_scale)),
        max_logit_scale=settings.max_logit_scale,
    )
    save_checkpoint(target, two_tower, recipe=recipe, results={"final_loss": final_loss}, overwrite=overwrite)
    write_text(target / LOG, "".join(msgspec.json.encode(line).decode() + "\n" for line in log))
    console.print(f"loss {log[0]['loss']:.3f} → {final_loss:.3f} after {settings.steps} steps", highlight=False)


def _recent_loss(log: Sequence[dict[str, float]]) -> float:
    return float(np.mean([line["loss"] for line in log[-_LOSS_WINDOW:]]))


def _learn_words(
    recipe: StarterRecipe, settings: Words, sentences: SentenceEncoder, captions: Tensor, bars: Progress
) -> tuple[ConceptHead, Tensor]:
    """The text projection that WordNet's nouns teach, and the places (C, D) of the classes; captions are (C, P, T)."""
    centre = captions.flatten(0, 1).mean(dim=0)
    names = normalize(normalize(captions - centre, dim=-1).mean(dim=1), dim=-1)  # (C, T)
    targets = word_targets(read_wordnet(Path(settings.wordnet)), names, centre, sentences, bars)
    head, places = fit_concepts(targets, names, centre, captions, settings, recipe.embedding_dim, bars)
    if recipe.weight_grid:
        for layer in (head.concepts, head.embeddings):
            layer.weight.data = without_negative_zeros(to_grid(layer.weight.data))
    return head, places


def _load_views(recipe: StarterRecipe, tower: ImageTower, classes: int, bars: Progress) -> tuple[list[Tensor], Tensor]:
    """Features (N, F) float16 of each view, and labels (N,)."""
    views: list[Tensor] = []
    labels = np.empty(0, np.int64)
    for view in recipe.data.views:
        task = bars.add_task(f"features, view {view or 'full'}", total=None)
        found = cached_features(
            tower,
            ShardPairs(recipe.data.shards),
            view=view,
            progress=lambda done, task=task: bars.update(task, completed=done),  # type: ignore[misc]
        )
        if found.skipped:
            bars.console.print(f"{found.skipped} samples were damaged and passed over", style="yellow")
        views.append(torch.from_numpy(np.array(found.features)))
        labels = found.labels
    if not views:
        raise TrainingError("expected at least one view in data.views, got none: use [0] for the images as they are")
    if labels.min() < 0 or labels.max() >= classes:
        raise TrainingError(
            f"expected labels from 0 to {classes - 1}, one for each name in {recipe.data.classes}, "
            f"got {labels.min()} to {labels.max()}"
        )
    return views, torch.from_numpy(labels)


def _warmup_cosine(step: int, recipe: StarterRecipe) -> float:
    settings = recipe.optimizer
    warm = min(1.0, (step + 1) / settings.warmup)
    return warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def main() -> None:
    """Run a recipe from the command line."""
    parser = argparse.ArgumentParser(description="Train the starter model's projections.")
    parser.add_argument("recipe", type=Path, help="e.g. tools/starter/starter.yaml")
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")
    given = parser.parse_args()
    recipe = load_starter_recipe(given.recipe, overrides=given.overrides)
    train_starter(recipe, given.output, console=Console(), overwrite=given.overwrite)


if __name__ == "__main__":
    try:
        main()
    except EdgeclipError as error:
        sys.exit(f"error: {error}")
