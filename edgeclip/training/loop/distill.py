"""A teacher's and a student's embeddings of the same images in, the loss between them out: no captions are needed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax, normalize

from edgeclip.spec import PreprocessSpec
from edgeclip.training.model import ContrastiveModel
from edgeclip.training.recipe import Loss
from edgeclip.training.two_tower import TwoTower


class DistillationViews:
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

    def to(self, device: torch.device | str) -> DistillationViews:
        """Move the teacher's image side."""
        for module in self._teacher.image_modules():
            module.to(device)
        return self

    def students_view(self, images: Tensor) -> Tensor:
        """Images of ``preprocess`` (N, 3, H, W) → as the student takes them."""
        return convert(images, self.preprocess, self._students)

    @torch.no_grad()
    def teacher_embeddings(self, images: Tensor) -> Tensor:
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
