"""Reports: one view model, shown as text or as JSON."""

from torchgauge.report.text import console, render_certify, render_error, render_inspect
from torchgauge.report.view import (
    SCHEMA_VERSION,
    CertifyView,
    InspectView,
    Subject,
    view_certificate,
    view_group,
)

__all__ = [
    "SCHEMA_VERSION",
    "CertifyView",
    "InspectView",
    "Subject",
    "console",
    "render_certify",
    "render_error",
    "render_inspect",
    "view_certificate",
    "view_group",
]
