"""The second process: it works beside this one, its failures are told, and it never
outlives this one.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minilib.training.beside import Beside


def write_threads(name: str, path: Path) -> None:
    path.write_text(f"{name} {torch.get_num_threads()}")


def fail(name: str) -> None:
    raise ValueError("the loss is nan")


def die(name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(name: str, path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # where there is one, a process that has ended but waits for its parent shows
    stat = Path(f"/proc/{pid}/stat")
    return not stat.is_file() or stat.read_text().rsplit(")")[1].split()[0] != "Z"


def wait_for(condition, seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


@pytest.fixture()
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_each_gets_half_of_the_threads_and_all_come_back(four_threads, tmp_path):
    with Beside(write_threads, "vae", path=tmp_path / "threads") as beside:
        assert torch.get_num_threads() == 2
        beside.check(wait=True)
        assert torch.get_num_threads() == 4
        assert (tmp_path / "threads").read_text() == "vae 2"
        beside.check(wait=True)  # once more: nothing to wait for


def test_without_a_name_nothing_runs_beside(four_threads):
    with Beside(fail, None) as beside:
        assert torch.get_num_threads() == 4
        beside.check(wait=True)


@pytest.mark.parametrize(
    ("work", "sentence"), [(fail, "the loss is nan"), (die, "it was killed")]
)
def test_a_failure_beside_is_told_here(work, sentence, four_threads):
    with pytest.raises(ChildProcessError, match=f"vae.*stopped: {sentence}"):
        with Beside(work, "vae") as beside:
            assert wait_for(beside.hears.poll)
            beside.check()
    assert torch.get_num_threads() == 4


def test_whoever_leaves_early_stops_the_other(four_threads, tmp_path):
    path = tmp_path / "pid"
    with pytest.raises(KeyboardInterrupt):
        with Beside(sleep, "vae", path=path) as beside:
            assert wait_for(path.is_file) and wait_for(path.read_text)
            beside.check()
            raise KeyboardInterrupt
    assert wait_for(lambda: not alive(int(path.read_text())), 10.0)
    assert torch.get_num_threads() == 4


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_beside import sleep
from minilib.training.beside import Beside
if __name__ == "__main__":
    with Beside(sleep, "vae", path=Path(sys.argv[1])):
        time.sleep(600)
"""


def test_a_killed_run_leaves_no_process_behind(tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    path, tests = tmp_path / "pid", Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests.parent)}
    process = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", path, tests], env=environment
    )
    assert wait_for(lambda: path.is_file() and path.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_for(lambda: not alive(int(path.read_text())), 10.0)
