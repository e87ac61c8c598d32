"""Neural ODEs and their gauge symmetry, the diffeomorphisms of spacetime, end to end.

    from torchgauge import ode

    moved = ode.pullback(field, diffeo)          # another field with the same input-output map
    ode.solve(moved, x).final                    # equals ode.solve(field, x).final
    net = ode.integrate(linear_field, layers=8)  # the feed-forward net that a linear field integrates to
    field_b = ode.lift(net_b, linear_field)      # and back (Theorem 3.1)

It follows Hashimoto, Hirono and Sannai, arXiv 2402.02362, with corrections; docs/paper.md lists equation by equation.
"""

from torchgauge.ode.adm import Split, adm_split, as_spatial, factorise, spatial_part
from torchgauge.ode.affine import Affine, affine_matrix
from torchgauge.ode.attention import (
    Kick,
    ResidualAttention,
    attention_of,
    attention_weights,
    first_order_gap,
    kicked,
    node_of,
    pure_gauge,
    query_loop,
    transform_attention,
)
from torchgauge.ode.checks import Health, check
from torchgauge.ode.connect import Connected, Steps
from torchgauge.ode.cubic import Cubic, response
from torchgauge.ode.diffeomorphism import Diffeomorphism, Spacetime, Spatial, Temporal
from torchgauge.ode.errors import (
    BoundaryError,
    DiffeomorphismError,
    FieldError,
    FoldError,
    GribovError,
    NotEquivalentError,
    OrientationError,
    SingularLayerError,
    SolverError,
    TimeOrderError,
)
from torchgauge.ode.families import (
    Flow,
    affine_loop,
    coupling,
    radial,
    random_affine,
    random_diffeomorphism,
    time_warp,
)
from torchgauge.ode.fields import ImpulsiveField, Jump, LinearField, VectorField, as_field
from torchgauge.ode.gauge_fixing import GaugeFixed, constant_gauge, sample_orbit, straight_line_gauge, total_line
from torchgauge.ode.layers import (
    Layers,
    connecting_gauge,
    discretise,
    integrate,
    transform,
    transform_lines,
    with_activation,
)
from torchgauge.ode.lifting import lift, lifting_gauge, rescaling_gauge, suspend
from torchgauge.ode.orbit import OrbitParts, orbit_parts
from torchgauge.ode.paths import Exponential, Sampled, SineSeries, bump, smoothstep
from torchgauge.ode.pullback import lie_derivative, pullback, spacetime_pullback, trivial_direction
from torchgauge.ode.regularisers import (
    acceleration,
    covariant_kinetic,
    gauge_field_penalty,
    hutchinson,
    jacobian_frobenius,
    kinetic_energy,
    uniform_motion,
)
from torchgauge.ode.solver import Accuracy, Solution, solve
from torchgauge.ode.wilson import WilsonLines, wilson

__all__ = [
    "Accuracy",
    "Affine",
    "BoundaryError",
    "Connected",
    "Cubic",
    "Diffeomorphism",
    "DiffeomorphismError",
    "Exponential",
    "FieldError",
    "Flow",
    "FoldError",
    "GaugeFixed",
    "GribovError",
    "Health",
    "ImpulsiveField",
    "Jump",
    "Kick",
    "Layers",
    "LinearField",
    "NotEquivalentError",
    "OrbitParts",
    "OrientationError",
    "ResidualAttention",
    "Sampled",
    "SineSeries",
    "SingularLayerError",
    "Solution",
    "SolverError",
    "Spacetime",
    "Spatial",
    "Split",
    "Steps",
    "Temporal",
    "TimeOrderError",
    "VectorField",
    "WilsonLines",
    "acceleration",
    "adm_split",
    "affine_loop",
    "affine_matrix",
    "as_field",
    "as_spatial",
    "attention_of",
    "attention_weights",
    "bump",
    "check",
    "connecting_gauge",
    "constant_gauge",
    "coupling",
    "covariant_kinetic",
    "discretise",
    "factorise",
    "first_order_gap",
    "gauge_field_penalty",
    "hutchinson",
    "integrate",
    "jacobian_frobenius",
    "kicked",
    "kinetic_energy",
    "lie_derivative",
    "lift",
    "lifting_gauge",
    "node_of",
    "orbit_parts",
    "pullback",
    "pure_gauge",
    "query_loop",
    "radial",
    "random_affine",
    "random_diffeomorphism",
    "rescaling_gauge",
    "response",
    "sample_orbit",
    "smoothstep",
    "solve",
    "spacetime_pullback",
    "spatial_part",
    "straight_line_gauge",
    "suspend",
    "time_warp",
    "total_line",
    "transform",
    "transform_attention",
    "transform_lines",
    "trivial_direction",
    "uniform_motion",
    "wilson",
    "with_activation",
]
