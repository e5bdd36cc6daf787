"""Work in other processes: scripts in a fresh interpreter, forks to be killed, and their memory."""

import os
import subprocess
import sys
import traceback
from pathlib import Path

TESTS = Path(__file__).parent


def run_script(code: str | Path, *arguments, timeout: float = 900, **environment: str) -> str:
    """What a script prints that ends well, in an interpreter that finds clay_lib and the modules of all tests."""
    path = [TESTS.parent, TESTS, *TESTS.glob("*/"), os.environ.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *([code] if isinstance(code, Path) else ["-c", code]), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    return done.stdout


def forked(work, *arguments) -> int:
    """Start work in a fork, which ends with it: its process id. Forks need no second import of the packages."""
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def peak_resident() -> int:
    """Highest resident memory of this process so far, in bytes.

    Linux's ru_maxrss of a new process begins with its parent's, so its own value is read from /proc.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
