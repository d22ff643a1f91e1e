"""`.ci/run` on a machine made of stand-ins: what it installs, what it runs, and that it fails when anything does."""
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOG = '#!/bin/sh\necho "$(basename "$0") $*" >> "$CALLS"\n'
STAND_INS = {
    "make": LOG + '[ "$1" != "$FAIL" ]\n',
    "apt-get": LOG + '[ "$1" != "$FAIL" ]\n',
    "sudo": '#!/bin/sh\nshift\nexec "$@"\n',
    "python3": "#!/bin/sh\n",
    "g++": "#!/bin/sh\n",
    "chromium": "#!/bin/sh\n",
}


@pytest.fixture
def ci(tmp_path):
    """`ci(missing=..., fail=...)` runs the script and gives (exit status, what was called)."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in STAND_INS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in ("sh", "dirname", "basename", "id", "env"):
        (programs / name).symlink_to(shutil.which(name))

    def run(missing: str = "", fail: str = "") -> tuple[int, list[str]]:
        if missing:
            (programs / missing).unlink()
        calls = tmp_path / "calls"
        environment = {"PATH": str(programs), "CALLS": str(calls), "FAIL": fail}
        ended = subprocess.run([shutil.which("bash"), ".ci/run"], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL)
        return ended.returncode, calls.read_text().splitlines()

    return run


def test_a_complete_machine_runs_both_commands_and_installs_nothing(ci):
    assert ci() == (0, ["make test", "make browser-test"])


@pytest.mark.parametrize("program, package", [("chromium", "chromium"), ("g++", "g++"), ("python3", "python3 python3-venv")])
def test_what_a_bare_machine_lacks_is_installed_first(ci, program, package):
    status, called = ci(missing=program)
    assert status == 0
    assert called == ["apt-get update -q", f"apt-get install -qy --no-install-recommends {package}",
                      "make test", "make browser-test"]


@pytest.mark.parametrize("fail", ["test", "browser-test"])
def test_either_failing_fails_ci_and_both_are_run(ci, fail):
    status, called = ci(fail=fail)
    assert status != 0
    assert called == ["make test", "make browser-test"]


def test_an_installation_that_fails_fails_ci(ci):
    status, called = ci(missing="chromium", fail="install")
    assert status != 0
    assert "make test" not in called
