"""The model section of a recipe in, the model to train out: new, from pretrained towers, or from a checkpoint."""

from __future__ import annotations

import torch
from torch import nn

from edgeclip.errors import RecipeError
from edgeclip.training.checkpoint.checkpoint import load_two_tower
from edgeclip.training.load import load_text_tower
from edgeclip.training.model import ContrastiveModel
from edgeclip.training.recipe import Loss, Model
from edgeclip.training.student import GivenText, student_of
from edgeclip.training.towers.build import build_image_tower, build_text_tower
from edgeclip.training.two_tower import TwoTower


def build_two_tower(model: Model, *, seed: int, loss: Loss | None = None) -> TwoTower:
    """Build the model that a recipe describes; the same seed gives the same weights.

    The projections are linear and without bias. A tower that gives a contrastive embedding of ``embedding_dim`` already
    (an open_clip or transformers CLIP) keeps its own projection and gets no second one.

    Args:
        loss: where temperature and bias start; by default as CLIP. With ``model.start`` they are the checkpoint's.

    Raises:
        RecipeError: an unknown tower or option, or a ``start`` of another architecture.
        ModelError: weights that cannot be had.
    """
    loss = loss or Loss()
    if model.start:
        return load_two_tower(model.start, model=model, loss=loss, teachers_text=load_text_tower)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image = build_image_tower(model.image, seed)
        text = build_text_tower(model.text, seed)
        image_head = _projection(image.width, model.embedding_dim, projects=image.projects)
        text_head = _projection(text.width, model.embedding_dim, projects=getattr(text, "projects", False))
    return TwoTower(
        image.module,
        image_head,
        text,
        text_head,
        preprocess=image.preprocess,
        model=model,
        logit_scale=loss.logit_scale,
        logit_bias=loss.logit_bias if loss.kind == "siglip" else None,
        max_logit_scale=loss.max_logit_scale,
    )


def build_student(model: Model, teacher: ContrastiveModel, *, seed: int) -> TwoTower:
    """The image tower of a recipe with a projection to the teacher's width, and the teacher's text side.

    Temperature and bias are the teacher's and are not trained, so that scores and thresholds mean what they did.

    Raises:
        RecipeError: another ``embedding_dim`` than the teacher's, or an image tower that cannot be built.
    """
    encoder = teacher.encoder
    if model.embedding_dim != encoder.embedding_dim:
        raise RecipeError(
            f"expected model.embedding_dim {encoder.embedding_dim}, the teacher's, got {model.embedding_dim}: "
            "a student's embeddings stand beside the teacher's texts"
        )
    if model.start:
        loss = Loss(kind="distill", teacher=teacher.name)
        started = load_two_tower(model.start, model=model, loss=loss, teachers_text=load_text_tower)
        image, head, preprocess, model = started.image, started.image_head, started.preprocess, started.model
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = build_image_tower(model.image, seed)
            head = _projection(tower.width, model.embedding_dim, projects=tower.projects)
        image, preprocess = tower.module, tower.preprocess
    return student_of(
        image,
        head,
        GivenText(teacher.text, teacher.identity, encoder.embedding_dim),
        preprocess=preprocess,
        model=model,
        logit_scale=encoder.logit_scale,
        logit_bias=encoder.logit_bias if encoder.score == "sigmoid" else None,
    )


def _projection(width: int, embedding_dim: int, *, projects: bool) -> nn.Module:
    """A linear projection (N, width) → (N, embedding_dim); none where the tower projects to that width itself."""
    if projects and width == embedding_dim:
        return nn.Identity()
    head = nn.Linear(width, embedding_dim, bias=False)
    nn.init.normal_(head.weight, std=width**-0.5)
    return head
