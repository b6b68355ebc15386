"""The audit: what was declared against what really runs."""

from castiron.torch.audit.api import assert_precision, audit

__all__ = ["assert_precision", "audit"]
