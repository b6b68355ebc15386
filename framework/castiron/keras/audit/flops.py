"""Floating-point operations of one operation, from the shapes around it."""

from __future__ import annotations

from castiron.keras.audit.kernels import BACKWARD_PRODUCTS, FREE
from castiron.keras.audit.records import Op


def count(op: Op) -> int:
    """2·m·n·k of products, one per element of others, none of what only moves numbers."""
    if op.name in FREE or not op.results:
        return 0
    if op.name not in BACKWARD_PRODUCTS or len(op.floats) < 2:
        floats = [v for v in (*op.results, *op.operands) if v.is_float]
        return max((v.size for v in floats), default=0)
    a, b = op.floats[0], op.floats[1]
    if op.name == "Einsum":
        return 2 * _einsum(op)
    if "Filter" in op.name:  # a gradient of the filter: as many products as the convolution itself
        filters, images = op.results[0], b
        return 2 * images.size * filters.size // max(filters.shape[-1], 1)
    if "Conv" in op.name:
        # transposed ones take the filter first
        filters = a if "Backprop" in op.name else b
        images = b if "Backprop" in op.name else op.results[0]
        if op.name.startswith("DepthwiseConv2dNative"):
            return 2 * images.size * filters.shape[0] * filters.shape[1]
        return 2 * images.size * filters.size // max(filters.shape[-1], 1)
    if not op.results[0].shape or len(op.results[0].shape) < 2:
        return 2 * a.size
    rows = op.results[0].shape[-2]
    batches = 1
    for extent in op.results[0].shape[:-2]:
        batches *= max(extent, 1)
    inner = a.size // max(rows * (batches if len(a.shape) > 2 else 1), 1)
    return 2 * op.results[0].size * max(inner, 1)


def _einsum(op: Op) -> int:
    equation = op.node.get_attr("equation").decode()
    extents: dict[str, int] = {}
    for labels, value in zip(equation.partition("->")[0].split(","), op.floats, strict=False):
        if "..." not in labels and len(labels) == len(value.shape):
            extents.update(zip(labels, value.shape, strict=True))
    n = 1
    for extent in extents.values():
        n *= max(extent, 1)
    return n
