"""Symmetry along training: what gradient flow conserves, and how finite steps and weight decay break it.

from torchgauge import learn

quantities = learn.conserved(model, (x,))            # from the gauge group: one per factor that has any
quantities[0](model.state_dict())                    # its values
recorder = learn.Recorder(quantities, every=10)
with recorder.attached(model, optimizer):
    train()
recorder.records()[0].drift, recorder.records()[0].predicted()
"""

from torchgauge.learn.brackets import Measured, measured_laws
from torchgauge.learn.dynamics import after_step, predict_decay
from torchgauge.learn.evaluation import Parts
from torchgauge.learn.quantities import ConservedQuantity, conserved, independent
from torchgauge.learn.recorder import Record, Recorder, load, save

__all__ = [
    "ConservedQuantity",
    "Measured",
    "Parts",
    "Record",
    "Recorder",
    "after_step",
    "conserved",
    "independent",
    "load",
    "measured_laws",
    "predict_decay",
    "save",
]
