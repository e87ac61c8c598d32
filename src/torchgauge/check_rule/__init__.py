"""One operator's rule against brute force: right, wrong or missing."""

from torchgauge.check_rule.operators import import_module, registered, resolve
from torchgauge.check_rule.recipes import Data, Weight
from torchgauge.check_rule.verdict import Trial, Verdict, check

__all__ = ["Data", "Trial", "Verdict", "Weight", "check", "import_module", "registered", "resolve"]
