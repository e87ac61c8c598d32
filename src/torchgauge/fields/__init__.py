"""Networks as field theories: ensembles, correlators, effective actions, symmetry by duality.

    from torchgauge import fields

    ensemble = fields.erf_net(width=1000)
    kappa4 = fields.correlator(ensemble, points, 4)

It follows Halverson, Maiti and Stoner, arXiv 2008.08601, and Maiti, Stoner and Halverson, arXiv 2106.00694, with
corrections; docs/fields.md derives the formulas.
"""

from torchgauge.fields.action import EffectiveAction, fit_action
from torchgauge.fields.contractions import contract, wick
from torchgauge.fields.correlators import correlator
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.errors import (
    EstimatorError,
    IdentifiabilityError,
    IdentifiabilityWarning,
    LawError,
    MisfitWarning,
    MomentError,
    PrecisionWarning,
    RunFileError,
    SingularKernelError,
)
from torchgauge.fields.kernels import cross_kernel, inverse_kernel, kernel
from torchgauge.fields.laws import (
    Blocks,
    Complex,
    Density,
    Fixed,
    Haar,
    Invariance,
    Kind,
    Law,
    Mixture,
    Normal,
    Sphere,
    Torch,
    TruncatedNormal,
    Uniform,
    as_law,
)
from torchgauge.fields.nets import (
    COSINE,
    ERF,
    GAUSS,
    RELU,
    TANH,
    Activation,
    Net,
    cosine_net,
    erf_net,
    gauss_net,
    net,
    relu_net,
    tanh_net,
)
from torchgauge.fields.results import Correlator
from torchgauge.fields.running import Flow, flow
from torchgauge.fields.symmetry import (
    TRANSFORMATIONS,
    EffectiveSymmetry,
    Symmetries,
    SymmetryTest,
    Transformation,
    Verdict,
    effective_symmetry,
    log_prior,
    prior_change,
    symmetries,
    test_outputs,
    test_symmetry,
)
from torchgauge.fields.terms import Integrals, integrals
from torchgauge.fields.training import evolve, of_invariants, supervised, track
from torchgauge.fields.vertex import Quartic, quartic

__all__ = [
    "COSINE",
    "ERF",
    "GAUSS",
    "RELU",
    "TANH",
    "TRANSFORMATIONS",
    "Activation",
    "Blocks",
    "Complex",
    "Correlator",
    "Density",
    "EffectiveAction",
    "EffectiveSymmetry",
    "Ensemble",
    "EstimatorError",
    "Fixed",
    "Flow",
    "Haar",
    "IdentifiabilityError",
    "IdentifiabilityWarning",
    "Integrals",
    "Invariance",
    "Kind",
    "Law",
    "LawError",
    "MisfitWarning",
    "Mixture",
    "MomentError",
    "Net",
    "Normal",
    "PrecisionWarning",
    "Quartic",
    "RunFileError",
    "SingularKernelError",
    "Sphere",
    "Symmetries",
    "SymmetryTest",
    "Torch",
    "Transformation",
    "TruncatedNormal",
    "Uniform",
    "Verdict",
    "as_law",
    "contract",
    "correlator",
    "cosine_net",
    "cross_kernel",
    "effective_symmetry",
    "erf_net",
    "evolve",
    "fit_action",
    "flow",
    "gauss_net",
    "integrals",
    "inverse_kernel",
    "kernel",
    "log_prior",
    "net",
    "of_invariants",
    "prior_change",
    "quartic",
    "relu_net",
    "supervised",
    "symmetries",
    "tanh_net",
    "test_outputs",
    "test_symmetry",
    "track",
    "wick",
]
