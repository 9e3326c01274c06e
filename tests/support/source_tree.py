"""The product's source files and what they import, for tests about the house itself."""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("policies", "transport", "runtime", "actors", "sim", "bench", "commands", "story")


@dataclass(frozen=True)
class Import:
    """``module`` is dotted from the repository root for ours ("runtime.interface"), else the name as imported."""

    module: str
    ours: bool
    line: int
    at_import_time: bool


def source_files():
    """Every product file, relative to the root."""
    files = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    return sorted(path.relative_to(ROOT) for path in files)


def imports(file):
    """Every import of ``file``, those under TYPE_CHECKING left out."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    found = []
    _visit(tree, file, found, at_import_time=True)
    return found


def _visit(node, file, found, *, at_import_time):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            found.extend(Import(alias.name, False, child.lineno, at_import_time) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            found.extend(_from(child, file, at_import_time))
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        _visit(child, file, found, at_import_time=at_import_time and not inside)


def _from(node, file, at_import_time):
    if node.level == 0:
        yield Import(node.module, False, node.lineno, at_import_time)
        return
    base = list(file.parent.parts)
    base = base[: len(base) - (node.level - 1)]
    stem = [*base, *(node.module or "").split(".")] if node.module else base
    if node.module:
        yield Import(".".join(part for part in stem if part), True, node.lineno, at_import_time)
        return
    for alias in node.names:
        yield Import(".".join([*stem, alias.name]), True, node.lineno, at_import_time)
