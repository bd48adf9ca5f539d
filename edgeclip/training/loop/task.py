"""A recipe in; its model, its data and the loss that joins them out: what differs between kinds of training."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec
import torch
from torch import Tensor, nn

from edgeclip.prompts import FloatArray
from edgeclip.spec import PreprocessSpec
from edgeclip.training.build_model import build_student, build_two_tower
from edgeclip.training.data.loader import PairBatch, PairLoader
from edgeclip.training.data.pairs import PairSource, open_pairs
from edgeclip.training.data.tables import NO_CAPTIONS
from edgeclip.training.load import load_model
from edgeclip.training.loop.distill import DistillationViews, distill_loss
from edgeclip.training.loop.distributed import World, bare, gather
from edgeclip.training.loop.frozen_towers import FeatureLoader, TeacherEmbeddings, TextFeatures, pair_features_once
from edgeclip.training.loop.loss import info_nce, sigmoid_loss
from edgeclip.training.loop.resume import Resumable
from edgeclip.training.loop.schedule import Average
from edgeclip.training.loop.validate import ZeroShot
from edgeclip.training.recipe import Data, Recipe
from edgeclip.training.towers.pretrained import ImageTower
from edgeclip.training.two_tower import TwoTower

Inputs = tuple[Tensor, ...]


class Batches(Resumable, Iterable[PairBatch], Protocol):
    """Endless batches that can be resumed."""

    @property
    def skipped(self) -> int:
        """Damaged or incomplete samples passed over so far."""
        ...


class Task(ABC):
    """What is trained on what.

    Attributes:
        model: the model, before it is distributed.
        loader: batches of this process.
        zero_shot: the validation set, if the recipe has one.
    """

    model: TwoTower
    loader: Batches

    def __init__(self, recipe: Recipe, *, world: World) -> None:
        self.recipe, self.world = recipe, world
        self.zero_shot: ZeroShot | None = None

    def batches(
        self, source: PairSource, data: Data, preprocess: PreprocessSpec, *, batch_size: int, images_only: bool = False
    ) -> Batches:
        """This process's share of a source: images, or features of a locked tower whose images are not augmented."""
        seed, rank, size, augment = self.recipe.seed, self.world.rank, self.world.size, self.recipe.augment
        if "image" not in self.model.locked or augment.active:
            return PairLoader(
                source,
                preprocess,
                data,
                batch_size=batch_size,
                seed=seed,
                rank=rank,
                world=size,
                augment=augment,
                images_only=images_only,
            )
        # The tower sees each image once; from then on its features are read.
        tower = ImageTower(self.model.image, self.model.image_width, self.model.preprocess)
        self.model.to(self.world.device)
        features = pair_features_once(tower, source, self.world)
        return FeatureLoader(
            features, source, data, batch_size=batch_size, seed=seed, rank=rank, world=size, images_only=images_only
        )

    @abstractmethod
    def inputs(self, batch: PairBatch) -> Inputs:
        """What the model is called with, on its device; N rows each."""

    @abstractmethod
    def objective(self, batch: PairBatch) -> Callable[..., Tensor]:
        """The loss of the model's outputs for this process's share of the batch."""

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings (N, D) of class names, for the validation."""

    def after_step(self) -> None:  # noqa: B027 - most tasks have nothing to do
        """What has to be done to the weights after each optimizer step."""

    def figures(self) -> dict[str, float]:
        """What is worth a curve beside the loss."""
        return {"logit_scale": float(self.model.logit_scale.detach().exp()), "skipped": float(self.loader.skipped)}

    @torch.no_grad()
    def top1(self, model: nn.Module, average: Average | None) -> float:
        """Zero-shot top-1 of the averaged weights, or of the present ones without an average."""
        assert self.zero_shot is not None
        towers = bare(model)
        towers.eval()
        with average.in_place() if average else contextlib.nullcontext():
            found = self.zero_shot.top1(
                lambda images: self.model.encode_image(images.to(self.world.device)), self.embed_texts
            )
        towers.train()
        return found


def contrastive_objective(groups: Tensor, world: World) -> Callable[..., Tensor]:
    """InfoNCE of the joint batch of all processes; with a bias, SigLIP's loss.

    Args:
        groups: (n,) of this process's pairs.

    Returns:
        Unit rows (n, D) of images and texts, the inverse temperature and perhaps a bias → scalar loss.
    """
    groups = gather(groups, world)

    def objective(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        images, texts = gather(images, world), gather(texts, world)
        if bias is None:
            return info_nce(images, texts, scale, groups)
        return sigmoid_loss(images, texts, scale, bias, groups)

    return objective


class Contrastive(Task):
    """Images and texts that belong together: InfoNCE or SigLIP's loss over the joint batch of all processes."""

    def __init__(self, recipe: Recipe, *, batch_size: int, world: World) -> None:
        super().__init__(recipe, world=world)
        self.model = build_two_tower(recipe.model, seed=recipe.seed, loss=recipe.loss)
        self.loader = self.batches(open_pairs(recipe.data), recipe.data, self.model.preprocess, batch_size=batch_size)
        self._texts = TextFeatures(self._text_features) if "text" in self.model.locked else None
        if recipe.data.val:
            self.zero_shot = ZeroShot(recipe.data, self.model.preprocess)

    def inputs(self, batch: PairBatch) -> Inputs:
        """Images or their features, tokens or their features."""
        images = batch.images.to(self.world.device, non_blocking=True)
        texts = self._texts(batch.texts) if self._texts else self.model.tokenize(batch.texts)
        return images, texts.to(self.world.device, non_blocking=True)

    def objective(self, batch: PairBatch) -> Callable[..., Tensor]:
        """Of unit rows and the temperature (and bias); every process computes the whole loss."""
        return contrastive_objective(batch.groups.to(self.world.device), self.world)

    def after_step(self) -> None:
        """Clamp the temperature."""
        self.model.clamp_logit_scale()

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Unit rows (N, D)."""
        rows: FloatArray = self.model.embed_texts(texts).cpu().numpy()
        return rows

    @torch.no_grad()
    def _text_features(self, texts: Sequence[str]) -> Tensor:
        return self.model.text_features(self.model.tokenize(texts).to(self.world.device))


class Distill(Task):
    """Images alone: the student's embeddings become the teacher's."""

    def __init__(self, recipe: Recipe, *, batch_size: int, world: World) -> None:
        super().__init__(recipe, world=world)
        self._teacher = load_model(recipe.loss.teacher, pretrained=recipe.loss.teacher_pretrained or None)
        self.model = build_student(recipe.model, self._teacher, seed=recipe.seed)
        self._views = DistillationViews(self._teacher, self.model).to(world.device)
        data = msgspec.structs.replace(recipe.data, caption_key=NO_CAPTIONS)
        source = open_pairs(data)
        whole = not recipe.augment.active or recipe.loss.teacher_view == "whole"
        self._teacher_embeddings = TeacherEmbeddings(self._teacher, source, world) if whole else None
        preprocess = self.model.preprocess if whole else self._views.preprocess
        self.loader = self.batches(source, data, preprocess, batch_size=batch_size, images_only=True)
        if recipe.data.val:
            self.zero_shot = ZeroShot(recipe.data, self.model.preprocess)

    def inputs(self, batch: PairBatch) -> Inputs:
        """Images as the student takes them (or their features), and the teacher's embeddings in the place of texts."""
        images = batch.images.to(self.world.device, non_blocking=True)
        if self._teacher_embeddings:
            return images, self._teacher_embeddings(batch.keys).to(self.world.device, non_blocking=True)
        parts = torch.split(images, self.recipe.scale.grad_cache_chunk or len(images))
        return self._views.students_view(images), torch.cat([self._views.teacher_embeddings(part) for part in parts])

    def objective(self, batch: PairBatch) -> Callable[..., Tensor]:  # noqa: ARG002 - no groups without texts
        """Of the student's and the teacher's unit rows."""

        def loss(student: Tensor, teacher: Tensor, *_: Tensor) -> Tensor:
            return distill_loss(gather(student, self.world), gather(teacher, self.world), self.recipe.loss)

        return loss

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """The teacher's (N, D)."""
        return self._teacher.encode_text(texts)


TASKS: dict[str, type[Contrastive] | type[Distill]] = {"contrastive": Contrastive, "distill": Distill}
