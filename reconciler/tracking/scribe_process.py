"""The process of the scribe: run by `scribe`, never imported.

The main thread does nothing but read, so that it sees at once when the reconciler is gone – and ends everything, whatever the
others are writing. MLflow is imported by the first of those.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from reconciler.errors import FlopsError
from reconciler.redaction import guard_output
from reconciler.tracking.scribe import WARM_UP


def main(connection: Connection) -> None:
    """Carry out what is asked, each call in a thread of its own, until the other side is gone."""
    answering = threading.Lock()
    with suppress(EOFError, OSError):
        while True:
            call = connection.recv()
            threading.Thread(target=_answer, args=(connection, answering, *call), daemon=True).start()


def _answer(connection: Connection, answering: threading.Lock, number: int, name: str, arguments: tuple[Any, ...]) -> None:
    answer: tuple[int, bool, object]
    try:
        answer = (number, True, _carry_out(name, arguments))
    except FlopsError as error:
        answer = (number, False, error)
    except Exception:
        answer = (number, False, traceback.format_exc())
    with answering, suppress(OSError):
        connection.send(answer)


def _carry_out(name: str, arguments: tuple[Any, ...]) -> object:
    from reconciler.tracking import writing

    return None if name == WARM_UP else writing.CALLS[name](*arguments)


if __name__ == "__main__":
    guard_output()
    main(Connection(int(sys.argv[1])))
    os._exit(0)  # not by way of the interpreter's end, which would wait for threads that write
