"""What the command line says about an error: one sentence."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Sequence

INTERRUPTED = 130  # the exit code of a command that was stopped by Ctrl-C


def say(sentence: str) -> None:
    """Prints a sentence about something that went wrong."""
    print(f"lifelong: {sentence}", file=sys.stderr)


def explain(error: Exception) -> None:
    """Prints one sentence about an error that the user can correct; raises any other error again."""
    if hasattr(error, "format_message"):  # typer's errors: a wrong command, option or value
        _explain_usage(error)
    elif isinstance(error, (LookupError, ValueError, TypeError, ImportError, OSError)):
        say(_sentence(error))
    else:
        from lifelong.store.files import StoreError

        if not isinstance(error, StoreError):
            raise error
        say(str(error))


def _explain_usage(error: Exception) -> None:
    text = error.format_message()  # type: ignore[attr-defined]
    if "Usage:" in text:
        print(text)
    elif text.strip():  # empty where `lifelong` was typed alone: typer has printed the help
        say(" ".join(text.split()) + _typed_value(error))


def _typed_value(error: Exception) -> str:
    """The value that was typed for the option that an error of typer is about."""
    names = getattr(getattr(error, "param", None), "opts", ())
    words = [piece for word in sys.argv[1:] for piece in word.split("=", 1)]
    typed = [value for name, value in itertools.pairwise(words) if name in names]
    return f", got {typed[-1]!r}" if typed and not type(error).__name__.startswith("Missing") else ""


def _sentence(error: Exception) -> str:
    if isinstance(error, KeyError):
        return str(error.args[0]) if error.args else "a name was not found"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return _with_flags(" ".join(str(error).split()), getattr(error, "fields", ()))


def _with_flags(text: str, names: Sequence[str]) -> str:
    """A sentence about options, with the name of each as it is typed: `--batch-size` in place of `batch_size`.

    Of a name at the beginning of the sentence only that occurrence is replaced: it may be an ordinary word elsewhere.
    """
    for name in names:
        text = re.sub(rf"\b{name}='([^']*)'", rf"{flag(name)} \1", text)
        text = re.sub(rf"(?<![\w-]){name}(?![\w-])", flag(name), text, count=1 if text.startswith(name) else 0)
    return text


def flag(name: str) -> str:
    """The option of the command line that sets an argument in Python: `--batch-size` for `batch_size`."""
    return "--" + name.strip("_").replace("_", "-")
