"""A synthetic sepsis registry with a known law, in the sepsis registry's own raw format.

It is a latent-class model. A patient has five latents (severity, source of infection, chronic disease, frailty, host
response; 720 joint states) with clinically plausible dependent priors. Given these, the base features are independent,
each with a finite grid of values, so that the probability of any masked value given any record is a finite sum: the
`Oracle` computes it exactly, and with it the best accuracy that a question allows. Derived features (SOFA components,
qSOFA items, categories of a laboratory value) are functions of one base feature each. Dates and times say nothing about
anything else. Every feature goes missing completely at random, at its own rate, so an absent value says nothing either.

The figures are plausible and made up: they are fitted to no patient. Sources of the ranges are named in `variables`.
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
