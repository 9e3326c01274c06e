"""The commands in the docs for operators do what the docs say: each page's blocks are run in order, in an empty folder."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from source_tree import ROOT

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE_S_MAX = 240

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", ["deploy.md", "secure.md", "operate.md"])
def test_the_commands_of_a_page_run_as_they_stand(page, tmp_path):
    blocks = BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert blocks
    script = tmp_path / "page.sh"
    script.write_text("set -e -o pipefail\n" + "\n".join(blocks), encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    printed = tmp_path / "printed"
    with printed.open("w") as output:
        process = subprocess.Popen(
            ["bash", script], cwd=tmp_path, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(timeout=PAGE_S_MAX)
        finally:
            with suppress(ProcessLookupError):  # a page may leave none
                os.killpg(process.pid, signal.SIGKILL)  # the daemons that the page started
            process.wait()
    assert code == 0, printed.read_text(encoding="utf-8")
