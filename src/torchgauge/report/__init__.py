"""Reports: one view model, shown as text or as JSON."""

from torchgauge.report.text import console, render_certify, render_error, render_inspect, render_why
from torchgauge.report.view import (
    SCHEMA_VERSION,
    CertifyView,
    InspectView,
    Subject,
    view_certificate,
    view_group,
)
from torchgauge.report.why import WhyView, view_why

__all__ = [
    "SCHEMA_VERSION",
    "CertifyView",
    "InspectView",
    "Subject",
    "WhyView",
    "console",
    "render_certify",
    "render_error",
    "render_inspect",
    "render_why",
    "view_certificate",
    "view_group",
    "view_why",
]
