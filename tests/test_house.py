"""Rules about the repository itself: what is packaged, documented, named and how large things may grow."""

import ast
import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from source_tree import ROOT, source_files

FILES = source_files()
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed_in_pyproject():
    packages = {".".join(["flexpipe", *file.parent.parts]) for file in FILES}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages


def test_every_source_file_appears_once_in_the_code_map():
    code_map = ARCHITECTURE.partition("## Code map")[2].partition("\n## ")[0]
    named = re.findall(r"^- `([\w/]+\.py)`", code_map, flags=re.MULTILINE)
    assert sorted(named) == [str(file) for file in FILES if file.name != "__init__.py" or len(file.parts) == 1]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_files_and_functions_stay_small(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES_MAX
    long = [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert long == []


@pytest.mark.parametrize("file", [file for file in FILES if file.name != "__init__.py"], ids=str)
def test_every_module_says_what_it_owns(file):
    assert ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8")))


def test_folders_have_empty_init_files():
    filled = [
        str(file) for file in FILES if file.name == "__init__.py" and len(file.parts) > 1 and (ROOT / file).read_text()
    ]
    assert filled == []


def test_the_version_is_the_same_everywhere():
    import flexpipe

    assert flexpipe.__version__ == PYPROJECT["project"]["version"] == distribution("flexpipe-serve").version
    assert f"## [{flexpipe.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_wheel_that_is_tested_is_typed():
    import flexpipe

    assert (Path(flexpipe.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_in_documents_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
