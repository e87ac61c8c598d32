"""Symmetry by duality: what leaves an ensemble of networks invariant, decided from its laws and by statistics.

`symmetries` decides from the declared laws and the traced graph, `test_symmetry` from sampled networks;
`effective_symmetry` says what a prior keeps of the gauge group. docs/symmetry_by_duality.md explains all three.
"""

from torchgauge.fields.symmetry.density import log_prior
from torchgauge.fields.symmetry.effective import EffectiveSymmetry, Selected, effective_symmetry, prior_change
from torchgauge.fields.symmetry.gallery import GALLERY, Case
from torchgauge.fields.symmetry.statistics import SymmetryTest, test_outputs, test_symmetry
from torchgauge.fields.symmetry.transformations import TRANSFORMATIONS, Transformation, transformation
from torchgauge.fields.symmetry.verdicts import Symmetries, Verdict, symmetries

__all__ = [
    "GALLERY",
    "TRANSFORMATIONS",
    "Case",
    "EffectiveSymmetry",
    "Selected",
    "Symmetries",
    "SymmetryTest",
    "Transformation",
    "Verdict",
    "effective_symmetry",
    "log_prior",
    "prior_change",
    "symmetries",
    "test_outputs",
    "test_symmetry",
    "transformation",
]
