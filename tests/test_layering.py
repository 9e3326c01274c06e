"""Who may import whom. The picture is in ARCHITECTURE.md; these tests keep it true."""

import subprocess
import sys

import pytest
from source_tree import imports, source_files

FILES = source_files()

# What each folder may import of ours. A folder always may import itself.
OURS = {
    "policies": (),
    "transport": (),
    "runtime": ("policies.types",),
    "actors": ("policies", "transport", "runtime.interface", "runtime.page_checksum"),
    "actors.gateway": (
        "actors.cluster_nodes",
        "actors.event_log",
        "actors.generation",
        "actors.refactor",
        "actors.route",
        "runtime.interface",
    ),
    "sim": ("policies", "transport", "runtime.interface", "runtime.page_checksum", "actors"),
    "bench": (
        "policies",
        "transport",
        "runtime",
        "actors",
        "sim",
        "client",
        "client_errors",
        "client_events",
        "client_streams",
        "daemon",
        "preparation",
    ),
    "story": ("actors.config", "actors.event_catalogue"),
    "commands": (
        "policies",
        "runtime",
        "actors",
        "bench",
        "client",
        "client_errors",
        "client_messages",
        "client_streams",
        "daemon",
        "daemon_folders",
        "node_daemon",
        "planning",
        "preparation",
        "sim",
        "transport.key_ring",
        "story",
    ),
}
# Third-party and standard modules that a folder must never import, at whatever depth.
FORBIDDEN = {
    "policies": ("torch", "trio", "zmq", "transformers", "socket", "time", "random", "datetime", "secrets", "os"),
    "transport": ("torch", "numba", "transformers", "starlette"),
    "runtime": ("trio", "zmq", "socket", "starlette", "hypercorn"),
    "actors": ("torch", "numba", "zmq", "transformers", "safetensors"),
    "sim": ("torch", "zmq", "time", "transformers"),
    "story": ("torch", "trio", "zmq", "rich", "time"),
}
# A machine sees events and returns instructions: no clock, no chance, no I/O.
IMPURE = ("trio", "time", "random", "datetime", "os", "socket", "secrets", "threading", "subprocess", "zmq", "torch")


def in_folder(folder):
    return [file for file in FILES if file.is_relative_to(folder.replace(".", "/"))]


def names(module, forbidden):
    return any(module == name or module.startswith(f"{name}.") for name in forbidden)


@pytest.mark.parametrize("folder", OURS)
def test_a_folder_imports_only_the_folders_below_it(folder):
    allowed = (folder, *OURS[folder])
    wrong = [
        f"{file}:{found.line} imports {found.module}"
        for file in in_folder(folder)
        for found in imports(file)
        if found.ours and not names(found.module, allowed)
    ]
    assert wrong == []


def test_only_the_composition_of_a_served_model_imports_the_gateway():
    importers = {
        str(file)
        for file in FILES
        for found in imports(file)
        if found.ours and names(found.module, ("actors.gateway",))
    }
    assert importers - {str(file) for file in in_folder("actors.gateway")} == {"served_model.py"}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_never_imports_what_would_break_its_promise(folder):
    wrong = [
        f"{file}:{found.line} imports {found.module}"
        for file in in_folder(folder)
        for found in imports(file)
        if not found.ours and names(found.module, FORBIDDEN[folder])
    ]
    assert wrong == []


@pytest.mark.parametrize("file", [file for file in FILES if file.stem.endswith("_machine")], ids=str)
def test_a_machine_is_pure(file):
    wrong = [found.module for found in imports(file) if not found.ours and names(found.module, IMPURE)]
    assert wrong == []


def test_our_own_modules_are_imported_relatively():
    wrong = [f"{file}:{found.line}" for file in FILES for found in imports(file) if names(found.module, ("flexpipe",))]
    assert wrong == []


@pytest.mark.parametrize(
    "module", ["flexpipe", "flexpipe.cli", "flexpipe.client", "flexpipe.actors.gateway.app", "flexpipe.daemon"]
)
def test_light_modules_start_without_torch_numba_and_transformers(module):
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'numba', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stderr) == (0, "")
