"""The principal logarithm of real matrices, batched and differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from torchgauge.ode.calculus import quadrature
from torchgauge.ode.errors import GribovError

NEAR = 0.25  # ‖M − 1‖ from which the quadrature of the logarithm is exact to rounding
NODES = 10


def principal_logarithm(matrices: Tensor) -> Tensor:
    """The logarithm whose eigenvalues have imaginary parts in (−π, π), by inverse scaling and squaring.

    Square roots are taken until M^{1/2^k} is near the identity; there log(1 + E) = ∫₀¹ E (1 + uE)⁻¹ du by quadrature.

    Args:
        matrices: [..., d, d] without eigenvalues on (−∞, 0].

    Returns:
        [..., d, d].
    """
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    root, halvings = matrices, 0
    while float(torch.linalg.matrix_norm((root - eye).detach()).amax()) > NEAR and halvings < 64:
        root, halvings = _square_root(root, eye), halvings + 1
    excess = root - eye
    times, weights = quadrature((0.0, 1.0), NODES, matrices)
    total = torch.zeros_like(matrices)
    for u, weight in zip(times, weights, strict=True):
        total = total + weight * torch.linalg.solve(eye + u * excess, excess)
    return total * 2.0**halvings


def _square_root(matrices: Tensor, eye: Tensor) -> Tensor:
    """The principal square root by the Denman–Beavers iteration, scaled by determinants."""
    d = matrices.shape[-1]
    root, inverse = matrices, eye.expand(matrices.shape)
    for k in range(40):
        size = torch.linalg.slogdet(root.detach())[1] + torch.linalg.slogdet(inverse.detach())[1]
        scale = torch.exp(-size / (2 * d))[..., None, None] if k < 6 else torch.ones_like(size)[..., None, None]
        new_root = (scale * root + torch.linalg.inv(scale * inverse)) / 2
        inverse = (scale * inverse + torch.linalg.inv(scale * root)) / 2
        change = float((new_root - root).detach().abs().amax())
        root = new_root
        if change <= 4 * d * torch.finfo(root.dtype).eps * float(root.detach().abs().amax()):
            break
    return root


def refuse_negative_axis(matrices: Tensor, gauge: str) -> None:
    """Raises if a matrix has an eigenvalue on (−∞, 0], to rounding.

    Args:
        matrices: W_{T:0}, [..., d, d].
        gauge: its name, for the message.

    Raises:
        GribovError: naming the eigenvalue.
    """
    values = torch.linalg.eigvals(matrices.detach()).reshape(-1)
    size = values.abs()
    rounding = torch.finfo(matrices.dtype).eps ** 0.5  # a double eigenvalue splits by the root of the rounding
    bad = ((values.real <= 0) & (values.imag.abs() <= rounding * size)) | (size <= rounding**2 * size.max())
    if not bool(bad.any()):
        return
    value = complex(values[int(bad.nonzero()[0])])
    shown = f"{value.real:.6g}" if abs(value.imag) < rounding * abs(value) else f"{value:.6g}"
    what = f"no point of the orbit has {gauge}: W(T, 0) has the eigenvalue {shown} on the half line (−∞, 0]"
    remedy = (
        "Along a straight line from 1 to it a matrix becomes singular; use another gauge, or a shorter span of time."
    )
    raise GribovError(what, f"eigenvalue {shown}", remedy)
