"""An ONNX graph in, what TensorRT would refuse or lose in it out, before any device sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from edgeclip.errors import LintError
from edgeclip.export.lint import operators as lint_ops
from edgeclip.export.lint import qdq as lint_qdq
from edgeclip.export.lint.graph import Graph, Problem, Severity

OLDEST_TENSORRT = (10, 0)  # strongly typed networks; JetPack 6.1 brings 10.3
_SHOWN = 5

RULES: dict[str, Callable[[Graph], Iterator[Problem]]] = {
    "opset": lint_ops.opset,
    "ir-version": lint_ops.ir_version,
    "operator": lint_ops.operator,
    "domain": lint_ops.domain,
    "data-dependent-shape": lint_ops.data_dependent_shape,
    "value-type": lint_ops.value_type,
    "mixed-types": lint_ops.mixed_types,
    "integer-product": lint_ops.integer_product,
    "resize": lint_ops.resize,
    "form": lint_ops.form,
    "node-name": lint_qdq.node_name,
    "zero-point": lint_qdq.zero_point,
    "quantized-type": lint_qdq.quantized_type,
    "scale": lint_qdq.scale,
    "per-channel-activation": lint_qdq.per_channel_activation,
    "pair": lint_qdq.pair,
    "weight-axis": lint_qdq.weight_axis,
    "small-product": lint_qdq.small_product,
}


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong with a graph.

    Attributes:
        rule: a key of ``RULES``.
        node: the node's name, a value's, or ``graph``.
        message: what was expected, what was got, what to do.
        severity: ``error``: refused or computed otherwise; ``warning``: slower, or up to version and device.
    """

    rule: str
    node: str
    message: str
    severity: Severity


def lint(path: Path, *, tensorrt: tuple[int, int] = OLDEST_TENSORRT) -> tuple[Finding, ...]:
    """Look a graph over for TensorRT, without TensorRT; errors first.

    A graph with no error is one that TensorRT-RTX 1.7's parser took wherever we tried; it is no promise that a kernel
    exists. Weights stored in 8 bits behind a DequantizeLinear alone are legal.

    Args:
        path: an ONNX file; its external data is not read, unless it holds scales.
        tensorrt: (major, minor) of the oldest TensorRT that has to take the graph.

    Raises:
        ModelError: not a readable ONNX file.
    """
    graph = Graph(path, tensorrt)
    found = [Finding(rule, *problem) for rule, check in RULES.items() for problem in check(graph)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def require_legal(path: Path, *, tensorrt: tuple[int, int] = OLDEST_TENSORRT) -> tuple[Finding, ...]:
    """Lint and refuse errors; return the warnings.

    Raises:
        LintError: TensorRT would refuse the graph; lists the first few errors.
        ModelError: not a readable ONNX file.
    """
    findings = lint(path, tensorrt=tensorrt)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        listed = "; ".join(f"[{item.rule}] {item.node}: {item.message}" for item in errors[:_SHOWN])
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise LintError(f"{path.name}: expected a graph that TensorRT takes, got {len(errors)} errors: {listed}{more}")
    return findings
