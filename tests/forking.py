"""A `lifelong` command for scripts under test: one process imports everything once, and forks for every call."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CALL = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as call:
    call.connect({place!r})
    socket.send_fds(call, [b"x"], [0, 1, 2])
    call.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    call.shutdown(socket.SHUT_WR)
    sys.exit(int(call.recv(9) or b"1"))
"""


@contextmanager
def command(folder: Path) -> Iterator[Path]:
    """A folder with a `lifelong` that is called like the installed one; for PATH."""
    place = folder / "calls"
    tool = folder / "lifelong"
    tool.write_text(CALL.format(python=sys.executable, place=str(place)))
    tool.chmod(0o755)
    with subprocess.Popen([sys.executable, __file__, str(place)]) as server:
        try:
            while not place.exists():
                assert server.poll() is None, "the process that is to answer calls has ended"
                time.sleep(0.05)
            yield folder
        finally:
            server.terminate()


def _serve(place: str) -> None:
    import torch  # noqa: F401  # before the forks, and nothing is computed: no thread that a fork would lose

    from lifelong import cli

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{place}.early")
        server.listen(8)
        os.rename(f"{place}.early", place)
        while True:
            call, _ = server.accept()
            with call:
                _, files, _, _ = socket.recv_fds(call, 1, 3)
                with call.makefile("rb") as sent:
                    text = sent.read()
                if os.fork() == 0:
                    _answer(call, json.loads(text), files, cli.main)
                for file in files:
                    os.close(file)
                os.wait()  # a script makes one call after another


def _answer(call: socket.socket, asked: list, files: list[int], main) -> None:
    code = 1
    try:
        arguments, folder, environment = asked
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["lifelong", *arguments]
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        call.sendall(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
