"""A teacher and images in, a student whose image embeddings are the teacher's out: no captions are needed.

The student has an image tower of its own and no text side: the teacher's text embeddings, hence its prompt tables, are
the student's too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, log_softmax, normalize

from edgeclip.errors import RecipeError
from edgeclip.spec import ModelIdentity, PreprocessSpec
from edgeclip.training.model import ContrastiveModel, TextModule, TextTower
from edgeclip.training.recipe import Loss, Model
from edgeclip.training.towers.build import build_image_tower
from edgeclip.training.two_tower import TwoTower, projection


class GivenText(TextModule):
    """The teacher's text side in the student's place for one: frozen, and no part of the student's weights.

    Attributes:
        encoder: the teacher's text tower.
        teacher: whose it is.
    """

    def __init__(self, encoder: TextTower, teacher: ModelIdentity, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.teacher = teacher
        self.width = width

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """The teacher's embeddings (N, D) float32: all is done here, on the CPU."""
        return torch.from_numpy(self.encoder.encode_text(texts))

    def forward(self, tokens: Tensor) -> Tensor:
        """The embeddings, as they are."""
        return tokens


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
        from edgeclip.training.checkpoint.checkpoint import load_two_tower  # which loads students itself

        started = load_two_tower(model.start, model=model, loss=Loss(kind="distill", teacher=teacher.name))
        image, head, preprocess, model = started.image, started.image_head, started.preprocess, started.model
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = build_image_tower(model.image, seed)
            head = projection(tower.width, model.embedding_dim, projects=tower.projects)
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


def student_of(
    image: nn.Module,
    head: nn.Module,
    text: GivenText,
    *,
    preprocess: PreprocessSpec,
    model: Model,
    logit_scale: float,
    logit_bias: float | None,
) -> TwoTower:
    """The student of an image tower, its projection and the teacher's text side; only the first two are trained."""
    student = TwoTower(
        image,
        head,
        text,
        nn.Identity(),
        preprocess=preprocess,
        model=model,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
    )
    student.logit_scale.requires_grad_(False)
    if student.logit_bias is not None:
        student.logit_bias.requires_grad_(False)
    return student


class Teaching:
    """What a student is shown and what the teacher says of it: both see the same view of an image (Beyer 2022).

    Args:
        teacher: any model; it is not changed but for the device of its image side.
        student: built by ``build_student``.

    Attributes:
        preprocess: how a loader has to prepare the images: as the one of the two with the larger input takes them.
    """

    def __init__(self, teacher: ContrastiveModel, student: TwoTower) -> None:
        self._teacher = teacher
        self._teachers, self._students = teacher.encoder.preprocess, student.preprocess
        self.preprocess = max(self._teachers, self._students, key=lambda spec: spec.height * spec.width)

    def to(self, device: torch.device | str) -> Teaching:
        """Move the teacher's image side."""
        for module in self._teacher.image_modules():
            module.to(device)
        return self

    def students_view(self, images: Tensor) -> Tensor:
        """Images of ``preprocess`` (N, 3, H, W) → as the student takes them."""
        return convert(images, self.preprocess, self._students)

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """Images of ``preprocess`` (N, 3, H, W) → the teacher's unit embeddings (N, D)."""
        embeddings = self._teacher.encode_image(convert(images, self.preprocess, self._teachers))
        return normalize(embeddings.clone(), dim=-1)  # a clone, as inference tensors cannot be used in a loss


def convert(images: Tensor, given: PreprocessSpec, wanted: PreprocessSpec) -> Tensor:
    """Images (N, 3, H, W), prepared as ``given`` says, in the size and the normalisation of ``wanted``.

    How the view was cut out of the frame (shortest side or squash) stays as it is.
    """
    same_size = (given.height, given.width) == (wanted.height, wanted.width)
    if same_size and (given.mean, given.std) == (wanted.mean, wanted.std):
        return images
    mean, std, new_mean, new_std = (
        images.new_tensor(values).view(3, 1, 1) for values in (given.mean, given.std, wanted.mean, wanted.std)
    )
    pixels = images * std + mean  # in [0, 1]
    if not same_size:
        size = (wanted.height, wanted.width)
        pixels = interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return (pixels - new_mean) / new_std


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Embedding matching: 1 - cos, the mean over N images.

    Args:
        student, teacher: (N, D) unit rows of the same images.
    """
    return 1 - (student * teacher).sum(dim=-1).mean()


def affinity_loss(
    student: Tensor, teacher: Tensor, logit_scale: Tensor | float, anchors: Tensor | None = None
) -> Tensor:
    """Affinity mimicking (TinyCLIP, Wu 2023, section 3.1): what is near to what is the same for student and teacher.

    The similarities of images and anchors are turned to probabilities, over the anchors of an image and over the images
    of an anchor; the loss is how far the student's are from the teacher's (Kullback-Leibler). It is 0 where both agree.

    Args:
        student, teacher: (N, D) unit rows of the same images, N > 2.
        logit_scale: inverse temperature of the probabilities.
        anchors: (M, D) unit rows that images are compared to, e.g. the teacher's embeddings of some prompts (the
            paper's captions); without any, the teacher's embeddings of the other images of the batch.

    Returns:
        Scalar loss, the mean of both directions.
    """
    rows = teacher if anchors is None else anchors
    got, wanted = (logit_scale * images @ rows.T for images in (student, teacher))  # (N, M) each
    if anchors is None:  # an image is its own nearest, which says nothing
        itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
        got, wanted = (logits.masked_fill(itself, -1e4) for logits in (got, wanted))
    return (_divergence(got, wanted) + _divergence(got.T, wanted.T)) / 2


def distill_loss(student: Tensor, teacher: Tensor, loss: Loss, anchors: Tensor | None = None) -> Tensor:
    """Both losses with the weights of a recipe; the affinities' temperature is ``loss.logit_scale``.

    Args:
        student, teacher: (N, D) unit rows of the same images.
        anchors: as ``affinity_loss`` takes them.
    """
    total = loss.embedding_weight * embedding_loss(student, teacher)
    if loss.affinity_weight:
        total = total + loss.affinity_weight * affinity_loss(student, teacher, loss.logit_scale, anchors)
    return total


def _divergence(got: Tensor, wanted: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the rows' softmax distributions."""
    got, wanted = log_softmax(got, dim=1), log_softmax(wanted, dim=1)
    return (wanted.exp() * (wanted - got)).sum(dim=1).mean()
