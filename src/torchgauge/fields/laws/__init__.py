"""Distributions over parameters, with their moments and their symmetries as declared data."""

from torchgauge.fields.laws.base import Invariance, Kind, Law
from torchgauge.fields.laws.compound import Blocks, Complex, Density, Mixture
from torchgauge.fields.laws.entries import Fixed, Normal, TruncatedNormal, Uniform
from torchgauge.fields.laws.library import Torch, as_law
from torchgauge.fields.laws.spheres import Haar, Sphere

__all__ = [
    "Blocks",
    "Complex",
    "Density",
    "Fixed",
    "Haar",
    "Invariance",
    "Kind",
    "Law",
    "Mixture",
    "Normal",
    "Sphere",
    "Torch",
    "TruncatedNormal",
    "Uniform",
    "as_law",
]
