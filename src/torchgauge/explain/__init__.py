"""Why a space is rigid: what stands between it and a larger group."""

from torchgauge.explain.paragraph import Reason
from torchgauge.explain.rigid import rigid
from torchgauge.explain.spaces import Space, select, spaces
from torchgauge.explain.why import Why, why

__all__ = ["Reason", "Space", "Why", "rigid", "select", "spaces", "why"]
