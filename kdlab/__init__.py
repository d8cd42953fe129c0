"""kdlab: knowledge distillation, derived, measured and recorded.

``import kdlab`` needs torch and numpy alone. The rooms are imported by name::

    from kdlab.objectives import CrossEntropy, SoftTargets, forward_kl
    from kdlab.models import resnet8
    from kdlab.training import Recipe, fit
"""

__version__ = "0.2.0"
