"""Telling the status: the documents as the loop has decided them, brought to the status branch beside the loop.

Status is feedback: work never waits for it, and no error in it stops work. What is offered while a push is on its way goes with
the next one, newest first, so that a thousand transitions make a few commits. What does not change makes none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from reconciler.errors import FlopsError
from reconciler.status import StatusBranch
from reconciler.statusdoc import Document, Kept, Renderer, keep_documents, subject

Complain = Callable[[str], None]
PAUSE = 1.0
"""Seconds between two status commits; transitions within them share one."""


class Publisher:
    """The status branch with one writer; `close` brings out what is left."""

    def __init__(self, status: StatusBranch, complain: Complain, *, background: bool = True, pause: float = PAUSE) -> None:
        self._status, self._complain, self._pause = status, complain, pause
        self._render = Renderer(status.identify)
        self._published: Mapping[str, Document] = {}
        self._offered: Mapping[str, Document] | None = None
        self._busy = False
        self._tip = ""
        self._closing = False
        self._hurry = threading.Event()
        self._changed = threading.Condition()
        self._background = background
        self._thread: threading.Thread | None = None
        self.error = ""
        self.commits = 0
        self.failures = 0
        self.pushes = self.push_retries = 0

    def load(self) -> dict[str, Kept]:
        """The documents as they stand on the branch."""
        self._tip = self._status.tip()
        found = keep_documents(self._status.files())
        self._published = found
        return dict(found)

    def offer(self, documents: Mapping[str, Document]) -> None:
        """Publish these documents when it is their turn; what was offered before and is not out yet is not published any more."""
        if not self._background:
            self._publish(documents)
            return
        with self._changed:
            self._offered = documents
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="status", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def was_changed(self) -> bool:
        """Whether the branch is not as we left it, while nothing of ours is on its way."""
        with self._changed:
            return self._offered is None and not self._busy and self._tip != self._status.tip()

    def retry(self) -> None:
        """Try again what did not reach the remote."""
        if self.error and self._offered is None:
            self.offer(self._published)

    def flush(self) -> None:
        """Wait until what was offered has been tried."""
        self._hurry.set()
        with self._changed:
            self._changed.wait_for(lambda: self._offered is None and not self._busy)
        self._hurry.clear()

    def close(self) -> None:
        """Bring out what is left and end."""
        with self._changed:
            self._closing = True
            self._hurry.set()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._offered is not None or self._closing)
                if self._offered is None:
                    return
                documents, self._offered, self._busy = self._offered, None, True
            self._publish(documents)
            with self._changed:
                self._busy = False
                self._changed.notify_all()
            self._hurry.wait(self._pause)

    def _publish(self, documents: Mapping[str, Document]) -> None:
        try:
            files = self._render(documents)
            result = self._status.publish(files, subject(self._published, documents) or "status", files.ids)
        except FlopsError as error:
            self._note(str(error))
            return
        self._published = documents
        self._tip = self._status.tip()
        self.commits += 1 if result.commit else 0
        self.pushes += 1 if result.pushed else 0
        self.push_retries += max(0, result.attempts - 1)
        self._note(f"the status branch was not pushed: {result.error}" if result.error else "")

    def _note(self, error: str) -> None:
        if error:
            self.failures += 1
        if error and error != self.error:
            self._complain(error)
        self.error = error
