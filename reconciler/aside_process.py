"""The process that `aside` starts; run, never imported by the reconciler.

The main thread does nothing but read, so that it sees at once when the reconciler is gone – and ends everything, whatever the
others are doing. What a call needs is imported by its own thread.
"""

from __future__ import annotations

import importlib
import os
import pickle
import pkgutil
import sys
import threading
import traceback
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection

from reconciler.aside import Kind, answer_to
from reconciler.errors import FlopsError
from reconciler.redaction import guard_output


class Answering:
    """Carries calls out, each in a thread of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def until_gone(self) -> None:
        """Until the other side is gone."""
        with suppress(EOFError, OSError):
            while True:
                threading.Thread(target=self._carry_out, args=(self._connection.recv_bytes(),), daemon=True).start()

    def _carry_out(self, call: bytes) -> None:
        number, name, arguments = pickle.loads(call)  # noqa: S301 – of the reconciler that started us
        answer_to(partial(self._send, number, Kind.LINE))
        try:
            self._send(number, Kind.RESULT, pkgutil.resolve_name(name)(*arguments))
        except FlopsError as error:
            self._send(number, Kind.ERROR, error)
        except BaseException as error:  # an exit as well: whoever asked waits for an answer
            if isinstance(error, OSError) and error.errno:
                self._send(number, Kind.ERROR, OSError(error.errno, error.strerror, error.filename))
            else:
                self._send(number, Kind.BUG, traceback.format_exc())

    def _send(self, number: int, kind: Kind, answer: object) -> None:
        content = pickle.dumps((number, kind, answer))
        with self._sending, suppress(OSError):
            self._connection.send_bytes(content)


def prepare(module: str) -> None:
    """Import a module."""
    importlib.import_module(module)


if __name__ == "__main__":
    guard_output()
    Answering(Connection(int(sys.argv[1]))).until_gone()
    os._exit(0)  # not by way of the interpreter's end, which would wait for what the others do
