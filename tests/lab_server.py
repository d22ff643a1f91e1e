"""`make lab` as a test runs it: on a free port of this machine, with settings of its own; the user's are neither read nor changed."""
from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},     # every cell is in the page, scrolled to or not
}
FOLDERS = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython",
           "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}


@dataclass(frozen=True)
class Server:
    port: int
    token: str

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}?token={self.token}"

    def get(self, path: str) -> dict:
        """What the server's API answers."""
        with urllib.request.urlopen(self.address(path), timeout=20) as answer:
            return json.load(answer)


@contextlib.contextmanager
def lab_server(home: Path, log: Path, *arguments: str, flags: str = "", limit_s: float = 90) -> Iterator[Server]:
    """Run `make lab` with this Python until the end of the block; `arguments` are make's, `flags` JupyterLab's. `home` keeps settings."""
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = Server(probe.getsockname()[1], secrets.token_hex(16))
    flags += f" --no-browser --ServerApp.port={server.port} --ServerApp.port_retries=0 --IdentityProvider.token={server.token}"
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    environment |= {variable: str(home / folder) for variable, folder in FOLDERS.items()}
    command = ["make", "lab", "VENV=", f"PYTHON={sys.executable}", f"FLAGS={flags}", *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                   start_new_session=True)
    try:
        _wait_for_answer(server, process, log, limit_s)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)           # make and JupyterLab, which shuts its kernels down first
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for_answer(server: Server, process: subprocess.Popen, log: Path, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            server.get("api/status")
            return
        time.sleep(0.2)
    raise RuntimeError(f"make lab did not start JupyterLab within {limit_s:.0f} s:\n{log.read_text()[-3000:]}")
