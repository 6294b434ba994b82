"""What only POSIX systems have is not needed to import the package, nor to replace and lock files."""

from __future__ import annotations

import subprocess
import sys

from test_layers import FILES, module

MODULES = sorted(module(path) for path in FILES if not path.endswith("bridges/avalanche.py"))  # Avalanche's own affair
CODE = """
import importlib, os, signal, sys, tempfile, warnings
import torch  # as it likes
for name in ("fcntl", "resource", "termios", "pwd", "grp", "syslog"):
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "posix_fallocate", "sched_getaffinity", "O_DIRECTORY", "killpg", "setsid"):
    delattr(os, name)
for name in ("SIGKILL", "SIGALRM", "alarm"):
    delattr(signal, name)
for name in sys.argv[1:]:
    importlib.import_module(name)
from pathlib import Path
from lifelong import files
from lifelong.data.pictures import decoding
folder = Path(tempfile.mkdtemp())
assert files.write(folder / "a", b"whole").read_bytes() == b"whole"
warnings.simplefilter("ignore")  # of a file system without locks
with files.lock(folder / "lock"):
    pass
decoding._limit(10**12, 1000)
"""


def test_every_module_is_imported_where_there_is_no_posix() -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *MODULES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
