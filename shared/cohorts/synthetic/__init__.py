"""A synthetic sepsis registry with a known probability distribution, in the raw format of the sepsis registry.

It is a latent-class model. A patient has five latent variables (severity, source of infection, chronic disease, frailty, host
response; 720 joint states) with a clinically plausible joint prior. Given the latent state, the base features are independent,
and each has a finite set of values. So the probability of a masked value given any record is a finite sum: the `Oracle`
computes it exactly, and with it the best possible accuracy on a question. Derived features (SOFA components, qSOFA items,
categories of a laboratory value) are functions of one base feature each. Dates and times are independent of everything else.
Values of a feature are missing completely at random, with a rate for each feature, so a missing value tells nothing.

The figures are plausible but invented; they are not fitted to any patients. `variables` names the sources of the ranges.
"""

from shared.cohorts.synthetic.features import Feature
from shared.cohorts.synthetic.latents import LATENTS, SHAPE, prior
from shared.cohorts.synthetic.oracle import Oracle, states_table, table
from shared.cohorts.synthetic.registry import draw, draw_complete, write_raw
from shared.cohorts.synthetic.variables import FEATURES

__all__ = [
    "FEATURES", "LATENTS", "SHAPE", "Feature", "Oracle",
    "draw", "draw_complete", "prior", "states_table", "table", "write_raw",
]  # fmt: skip
