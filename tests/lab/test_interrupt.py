"""Interrupting a cell, in a real Jupyter kernel: it stops within a second, and the next cell works."""

import time

import pytest
from jupyter_client.manager import start_new_kernel

from labkernels.cuda.numba_cuda import SIMULATED

SETUP = """
import os, threading, time, torch
import labkernels as lk
import labkernels.cuda
from labkernels.cuda.numba_cuda import as_numba, cuda
x = torch.ones(64)
"""
FOR_EVER = """
endless = lk.Kernel('extern "C" __global__ void endless(volatile float* x) { while (x[0] > 0) { } }', "endless")
wait_for_all = lk.Kernel('''extern "C" __global__ void wait_for_all(volatile float* x) {
    if (threadIdx.x == 0) while (x[0] > 0) { }
    __syncthreads();
}''', "wait_for_all")
add_one = lk.Kernel('extern "C" __global__ void add_one(float* x) { x[threadIdx.x] += 1; }', "add_one")
for kernel in (endless, wait_for_all, add_one):
    kernel.emulated

@cuda.jit
def numba_endless(x):
    if cuda.threadIdx.x == 0:
        while x[0] > 0:
            pass
    cuda.syncthreads()
with lk.cuda.isolated():
    add_one(1, 64, (x,))

def busy():
    # threads of Python, and the clock ticks (of 20) that the children spend in 0.2 s
    def ticks():
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = file.read().split()
        return sum(sum(map(int, open(f"/proc/{child}/stat").read().rsplit(")")[-1].split()[11:13])) for child in children)
    begun = ticks()
    time.sleep(0.2)
    return threading.active_count(), ticks() - begun
time.sleep(0.5)
before = busy()
"""


@pytest.fixture(scope="module")
def notebook():
    manager, client = start_new_kernel(kernel_name="python3")
    run = Notebook(manager, client)
    assert run(SETUP + FOR_EVER) == ("ok", "")
    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


class Notebook:
    """Runs cells; gives how each ended, and its standard output or the error's name."""

    def __init__(self, manager, client):
        self.manager, self.client = manager, client

    def __call__(self, code: str, timeout_s: float = 60) -> tuple[str, str]:
        shown = []

        def collect(message):
            if message["msg_type"] == "stream":
                shown.append(message["content"]["text"])

        reply = self.client.execute_interactive(code, timeout=timeout_s, output_hook=collect, allow_stdin=False)["content"]
        return reply["status"], reply.get("ename") or "".join(shown)

    def interrupt(self, code: str) -> tuple[str, float]:
        """Start a cell, interrupt it when it has said "running", and give the error's name and how many seconds it took to end."""
        request = self.client.execute(f"print('running', flush=True)\n{code}", stop_on_error=False)
        while True:
            message = self.client.get_iopub_msg(timeout=30)
            if message["msg_type"] == "stream" and "running" in message["content"]["text"]:
                break
        time.sleep(0.3)
        begun = time.monotonic()
        self.manager.interrupt_kernel()
        while True:
            reply = self.client.get_shell_msg(timeout=30)
            if reply["parent_header"].get("msg_id") == request:
                return reply["content"].get("ename", "no error"), time.monotonic() - begun


CELLS = {
    "emulator": "endless(4, 64, (x,))",
    "emulator at a barrier": "wait_for_all(4, 64, (x,))",
    "sanitizer": "lk.sanitize(endless, 1, 64, (x,), time_limit_s=60)",
    "child process": "with lk.cuda.isolated():\n    endless(1, 64, (x,))",
    "numba": "numba_endless[2, 8](as_numba(x))",
}


@pytest.mark.skipif(not SIMULATED, reason="on a GPU the kernel runs there")
@pytest.mark.parametrize("where", CELLS)
def test_an_endless_kernel_stops_within_a_second_and_the_next_cell_works(notebook, where):
    ename, seconds = notebook.interrupt(CELLS[where])
    assert ename == "KeyboardInterrupt" and seconds < 1
    assert notebook("x.fill_(1); add_one(1, 64, (x,)); print(x.unique().tolist())") == ("ok", "[2.0]\n")
    status, shown = notebook("time.sleep(0.2); now = busy(); print(now[0] == before[0] and now[1] < 5, now, before)")
    assert shown.startswith("True"), shown
