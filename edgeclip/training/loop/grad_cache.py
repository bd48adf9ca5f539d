"""A batch and a loss in, gradients out; in chunks if asked, with the gradients of the whole on the memory of one chunk.

GradCache (Gao 2021): a contrastive loss needs all embeddings at once, but an embedding needs only its own sample. So
the batch goes through the towers twice in chunks: first without a graph, for the embeddings and the loss's gradient
with respect to them; then with one, where each chunk's backward pass starts from its part of that gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from edgeclip.training.loop.distributed import gradients_stay_here

Outputs = tuple[Tensor, ...]


def forward_backward(
    model: nn.Module,
    inputs: Outputs,
    objective: Callable[..., Tensor],
    *,
    chunk: int = 0,
    scaler: torch.amp.GradScaler | None = None,
    autocast: AbstractContextManager[object] | None = None,
) -> Tensor:
    """Loss of a batch, with its gradients added to the parameters'.

    In chunks the result is equal to the whole batch's but for rounding, random layers included (each chunk's random
    state is put back). Not so with layers that look across the batch: batch norm sees a chunk.

    Args:
        model: as it was distributed; returns a tuple of rows (n, ...), scalars () and None.
        inputs: tensors with N rows each.
        objective: the model's outputs without the None, in float32 → scalar loss.
        chunk: largest number of rows at once; 0 for all.
        scaler: scales the loss under fp16.
        autocast: that the model runs under; the loss does not.

    Returns:
        The loss, scalar, without a graph.
    """

    def forward(*rows: Tensor) -> Outputs:
        with autocast or contextlib.nullcontext():
            outputs = model(*rows)
        return tuple(output.float() for output in outputs if output is not None)

    def backward(loss: Tensor) -> None:
        scaled = scaler.scale(loss) if scaler else loss
        scaled.backward()  # type: ignore[no-untyped-call]

    count = len(inputs[0])
    if chunk and chunk < count:
        return _in_chunks(model, forward, inputs, objective, backward, chunk=chunk)
    loss = objective(*forward(*inputs))
    backward(loss)
    return loss.detach()


def _in_chunks(
    model: nn.Module,
    forward: Callable[..., Outputs],
    inputs: Outputs,
    objective: Callable[..., Tensor],
    backward: Callable[[Tensor], None],
    *,
    chunk: int,
) -> Tensor:
    pieces = [[rows[start : start + chunk] for rows in inputs] for start in range(0, len(inputs[0]), chunk)]

    # Embeddings of all chunks, without a graph.
    states, embedded = [], []
    with torch.no_grad():
        for piece in pieces:
            states.append(_random_state())
            embedded.append(forward(*piece))
    after = _random_state()

    # The loss over the whole batch, and its gradient with respect to the outputs.
    leaves = [_leaf(column) for column in zip(*embedded, strict=True)]
    loss = objective(*leaves)
    backward(loss)
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]

    # Each chunk again, with a graph: its outputs times their gradient has the right gradient for the parameters.
    start = 0
    for number, (piece, state) in enumerate(zip(pieces, states, strict=True)):
        last = number == len(pieces) - 1
        with contextlib.nullcontext() if last else gradients_stay_here(model):
            _set_random_state(state)
            outputs = forward(*piece)
            stop = start + max(len(output) for output in outputs if output.dim())
            # Scalars (temperature, bias) are the same in every chunk: each takes its share, so that none is unused.
            terms = [
                (output * (gradient[start:stop] if output.dim() else gradient / len(pieces))).sum()
                for output, gradient in zip(outputs, gradients, strict=True)
                if output.requires_grad
            ]
            torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
            start = stop
    _set_random_state(after)
    return loss.detach()


def _leaf(column: tuple[Tensor, ...]) -> Tensor:
    joined = torch.cat(column) if column[0].dim() else column[0].clone()
    return joined.detach().requires_grad_()


def _random_state() -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
