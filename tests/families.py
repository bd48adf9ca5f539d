"""The name of a model family in, a model of real size with random weights out that hides nothing a trained one shows.

For the tests, which ship with the source, and for the benchmarks, which run in a checkout beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
import transformers
from torch.nn.modules.batchnorm import _BatchNorm

from edgeclip.prompts import FloatArray
from edgeclip.training.load import load_model
from edgeclip.training.model import ContrastiveModel
from edgeclip.training.towers.open_clip import OpenClipModel

SMALL = "PE-Core-T-16-384"  # the smallest of open_clip's own models
TINY = "tiny-ViT"  # a form of open_clip's that is a few blocks wide and deep
_BATCH = 16
_VIT_B_DEPTH = 12

open_clip.add_model_config(Path(__file__).parent / "inputs" / f"{TINY}.json")


def as_if_trained(model: ContrastiveModel, seed: int = 0) -> ContrastiveModel:
    """Give normalisations, biases and layer scales values that fresh weights hide: they start as 0 and 1.

    A scale that starts as 0 ends a residual branch (RN50) and stays small: as large as the others, it would make each
    block amplify rounding errors, twentyfold over the network, so that not even FP16 agreed with FP32.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for root in model.image_modules():
            for module in root.modules():
                if isinstance(module, _BatchNorm):
                    module.running_mean.normal_(0, 0.1, generator=generator)
                    module.running_var.uniform_(0.5, 1.5, generator=generator)
                if isinstance(module, _BatchNorm | torch.nn.LayerNorm):
                    low, high = (0.5, 1.5) if module.weight.any() else (0.1, 0.4)
                    module.weight.uniform_(low, high, generator=generator)
                    module.bias.normal_(0, 0.1, generator=generator)
                elif isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and module.bias is not None:
                    module.bias.normal_(0, 0.02, generator=generator)
            for name, parameter in root.named_parameters():
                if name.endswith(("gamma", "layer_scale")):
                    parameter.uniform_(0.2, 1.0, generator=generator)
    return model


def shortened(model: ContrastiveModel, depth: int = 2) -> ContrastiveModel:
    """Keep the first blocks of a ViT-B: all its operators at their width, in a fraction of the time.

    Other networks, whose stages differ in width, are left as they are.
    """
    for root in model.image_modules():
        for module in root.modules():
            for name in ("resblocks", "blocks", "layers"):  # open_clip's own transformer, timm's, transformers'
                blocks = getattr(module, name, None)
                if isinstance(blocks, torch.nn.ModuleList | torch.nn.Sequential) and len(blocks) == _VIT_B_DEPTH:
                    del blocks[depth:]
    return model


def estimate_statistics(model: ContrastiveModel, images: FloatArray) -> int:
    """Set the statistics of batch normalisations to those of ``images``, as training does.

    With other statistics a deep network of random weights gives nearly parallel embeddings (RN50: a mean cosine of
    0.99999 between different photographs; 0.69 with these), and nothing can be said of what tells images apart.

    Args:
        images: preprocessed real photographs (N, 3, H, W) float32.

    Returns:
        How many normalisations there are; 0 for a transformer, which has none.
    """
    found = [part for root in model.image_modules() for part in root.modules() if isinstance(part, _BatchNorm)]
    if not found:
        return 0
    for part in found:
        part.reset_running_stats()
        part.momentum = None  # the plain mean over all batches
        part.train()
    for batch in torch.from_numpy(images).split(_BATCH):
        model.encode_image(batch)
    for part in found:
        part.eval()
    return len(found)


def transformers_model(kind: str, folder: Path) -> ContrastiveModel:
    """Save a random model of transformers' default size and load it from its folder."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")()
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    return load_model(str(folder))


# Name -> the model with fresh weights; transformers needs a folder to load from.
FAMILIES: dict[str, Callable[[Path], ContrastiveModel]] = {
    "RN50": lambda _: OpenClipModel("RN50"),
    "MobileCLIP2-S0": lambda _: OpenClipModel("MobileCLIP2-S0"),
    "ViT-B-32": lambda _: OpenClipModel("ViT-B-32"),
    "ViT-B-32-quickgelu": lambda _: OpenClipModel("ViT-B-32-quickgelu"),
    "ViT-B-16-SigLIP": lambda _: OpenClipModel("ViT-B-16-SigLIP"),
    "transformers CLIP B/32": lambda folder: transformers_model("CLIP", folder),
    "transformers SigLIP B/16": lambda folder: transformers_model("Siglip", folder),
}
