"""Paired unit embeddings in, a contrastive loss out: CLIP's softmax or SigLIP's sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid


def info_nce(images: Tensor, texts: Tensor, logit_scale: Tensor, groups: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP, figure 3), with pairs of the same class counted as matches.

    In a batch drawn from class names many captions say the same thing. Calling them negatives would teach the model to
    tell equals apart, so the target of a row is spread evenly over all pairs of its group (as UniCL, Yang 2022); with
    all groups distinct this is plain InfoNCE.

    Args:
        images, texts: (N, D) unit rows; row i of each belongs together.
        logit_scale: scalar, inverse temperature.
        groups: (N,) integers, equal where captions name the same class.

    Returns:
        Scalar loss, the mean of both directions.
    """
    logits = logit_scale * images @ texts.T  # (N, N)
    same = (groups[:, None] == groups[None, :]).to(logits.dtype)
    targets = same / same.sum(dim=1, keepdim=True)  # symmetric: groups are the same both ways
    image_to_text = -(targets * log_softmax(logits, dim=1)).sum(dim=1).mean()
    text_to_image = -(targets * log_softmax(logits.T, dim=1)).sum(dim=1).mean()
    return torch.add(image_to_text, text_to_image) / 2


def sigmoid_loss(images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor, groups: Tensor) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, Zhai 2023, section 3): each of the N² pairs is a match or is none.

    Pairs of the same class count as matches; with all groups distinct this is the paper's loss.

    Args:
        images, texts: (N, D) unit rows; row i of each belongs together.
        logit_scale, logit_bias: scalars, both learned; the paper starts them at 10 and -10.
        groups: (N,) integers, equal where captions name the same class.

    Returns:
        Scalar loss, summed over the pairs and divided by N.
    """
    logits = logit_scale * images @ texts.T + logit_bias  # (N, N)
    signs = 2 * (groups[:, None] == groups[None, :]).to(logits.dtype) - 1  # 1 for a match, -1 for none
    return -logsigmoid(signs * logits).sum() / len(images)
