"""The three objectives: each has a formula for exactly the terms of the table, and both backends' files are twins."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

from shared.grpo.losses import LOSSES

REFERENCE = "shared.grpo.objective"
BACKENDS = ("creason_jax.learner.loss", "creason_torch.learner.loss")


def defined(name: str) -> list[str]:
    """Names of the functions and classes of a module, in their order."""
    body = ast.parse(inspect.getsource(importlib.import_module(name))).body
    return [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


@pytest.mark.parametrize("name", [REFERENCE, *BACKENDS])
def test_every_term_of_the_table_has_a_formula_and_there_is_no_other(name):
    terms = importlib.import_module(name).POLICY_TERMS
    assert set(terms) == {loss.term for loss in LOSSES.values()}
    assert {term: formula.__name__ for term, formula in terms.items()} == {term: f"{term}_term" for term in terms}
    assert {formula.__module__ for formula in terms.values()} == {name}


def test_the_backends_have_the_same_functions_in_the_same_order_as_the_reference():
    jax, torch = map(defined, BACKENDS)
    assert jax == torch
    assert [name for name in defined(REFERENCE) if name in jax] == jax
