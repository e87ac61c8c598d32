"""Certificates: is the gauge group right, and is it everything?"""

from torchgauge.certify.certificate import Certificate
from torchgauge.certify.twin import twin_of
from torchgauge.certify.verdict import certify

__all__ = ["Certificate", "certify", "twin_of"]
