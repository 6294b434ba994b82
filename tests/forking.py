"""A `lifelong` command for scripts under test: one process imports everything once, and forks for every call."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

CALL = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as call:
    call.connect({place!r})
    socket.send_fds(call, [b"x"], [0, 1, 2])
    call.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    call.shutdown(socket.SHUT_WR)
    with call.makefile("rb") as answer:
        answer.readline()
        sys.exit(int(answer.read() or b"1"))
"""


class Process:
    """A call of `lifelong` in a process of its own, which can be killed; `place` is of a `server`."""

    def __init__(self, place: Path, words: Sequence[str], folder: Path, said: IO[bytes]) -> None:
        with socket.socket(socket.AF_UNIX) as call:
            call.connect(str(place))
            socket.send_fds(call, [b"x"], [0, said.fileno(), said.fileno()])
            call.sendall(json.dumps([list(words), str(folder), dict(os.environ)]).encode())
            call.shutdown(socket.SHUT_WR)
            self._answer = call.makefile("rb")
        self.pid = int(self._answer.readline())

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or does within so many seconds."""
        return bool(select.select([self._answer], [], [], seconds)[0])

    def wait(self) -> int | None:
        """Its exit code, when it has ended; None where it was killed."""
        with self._answer:
            return int(code) if (code := self._answer.read()) else None

    def kill(self) -> None:
        """Ends it as `kill -9` does, whatever it is doing."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@contextmanager
def server(place: Path, smoke: str = "") -> Iterator[None]:
    """Something that answers calls at `place`; see `_abridged` for `smoke`."""
    with subprocess.Popen([sys.executable, __file__, str(place), *([smoke] if smoke else [])]) as process:
        try:
            while not place.exists():
                assert process.poll() is None, "the process that is to answer calls has ended"
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


@contextmanager
def command(folder: Path, smoke: str = "") -> Iterator[Path]:
    """A folder with a `lifelong` that is called like the installed one; for PATH. See `_abridged` for `smoke`."""
    place = folder / "calls"
    tool = folder / "lifelong"
    tool.write_text(CALL.format(python=sys.executable, place=str(place)))
    tool.chmod(0o755)
    with server(place, smoke):
        yield folder


def _abridged(sizes: str) -> None:
    """For smoke tests of long commands, data sets are small, as `sizes` says in JSON: MNIST has so many training and test
    images, the parts of tiny-imagenet-100 so many classes of so many images; and figures are laid out but not encoded."""
    from dataclasses import replace

    from lifelong.streams import mnist, tiny_imagenet

    from lifelong.report import canvas

    small = json.loads(sizes)
    mnist._SIZES, mnist._SHA256 = small["mnist"], small["sha256"]
    tiny_imagenet._PART = replace(tiny_imagenet._PART, parts=small["tiny"], images=small["images"])
    canvas.encoded = lambda figure, kind: b"<svg/>"


def _serve(place: str, smoke: str = "") -> None:
    # What every call would import is imported before the forks. Nothing is computed: a fork would lose threads.
    import scipy.special  # noqa: F401
    import torch._dynamo  # noqa: F401  # torch.func.grad loads it at its first call, for several seconds
    from lifelong.strategies import maml, oml, replay  # noqa: F401

    from lifelong import cli
    from lifelong.experiments import prepare, tuning  # noqa: F401
    from lifelong.report import document, html, latex  # noqa: F401
    from lifelong.starts import fewshot, pretrain  # noqa: F401

    if smoke:
        _abridged(smoke)

    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{place}.early")
        door.listen(8)
        os.rename(f"{place}.early", place)
        while True:
            call, _ = door.accept()
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
    call.sendall(f"{os.getpid()}\n".encode())
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
    _serve(*sys.argv[1:])
