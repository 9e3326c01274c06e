"""The simulators decide with the product's policies: no function of theirs is one of those under another name."""

import ast
from pathlib import Path

import pytest
from source_tree import ROOT

STATEMENTS_MIN = 4
"""Smaller functions are alike by chance."""


def shapes(folder):
    """The shape of each function in the files of a folder, names and docstrings left out, with where it is."""
    found = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and len(node.body) - bool(ast.get_docstring(node)) >= STATEMENTS_MIN:
                found[shape(node)] = f"{Path(file).relative_to(ROOT)}:{node.name}"
    return found


def shape(function):
    """Its body with every name replaced by the order in which it first comes."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    names = {}
    for node in (inner for statement in body for inner in ast.walk(statement)):
        for field in ("id", "attr", "arg"):
            if isinstance(getattr(node, field, None), str):
                setattr(node, field, str(names.setdefault(getattr(node, field), len(names))))
    return "".join(ast.dump(statement) for statement in body)


@pytest.mark.parametrize("folder", ["sim/cluster", "sim/systems", "sim/evaluation"])
def test_no_function_of_the_simulator_is_a_policys_function_renamed(folder):
    policies = shapes("policies")
    assert len(policies) > 100
    assert {where: policies[body] for body, where in shapes(folder).items() if body in policies} == {}


def test_a_renamed_copy_would_be_found():
    original = "def f(a, b):\n    '''Doc.'''\n    c = a + b\n    d = c * a\n    e = d - c\n    return e"
    renamed = "def g(x, y):\n    z = x + y\n    w = z * x\n    v = w - z\n    return v"
    other = "def g(x, y):\n    z = x + y\n    w = z * y\n    v = w - z\n    return v"
    first, second, third = (shape(ast.parse(text).body[0]) for text in (original, renamed, other))
    assert first == second != third
