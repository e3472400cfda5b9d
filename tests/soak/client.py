"""A client of the served endpoint that never pauses for long; it keeps what failed, and when."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Self

import httpx

from tests.soak.site import FEATURES

PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without its answer: from when to when (monotonic seconds), and why."""

    began: float
    ended: float
    why: str

    def in_flight_at(self, moment: float) -> bool:
        """Whether it was under way then; the moment of a kill is known as well as the scheduler allows."""
        return self.began - 0.05 <= moment <= self.ended + 0.05


class Client:
    """One request after the other to one address, half of them over a connection that is kept."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/invocations"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.answered = 0
        self.failures: list[Failure] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join(60)

    def _ask(self) -> None:
        body = {"inputs": [[0.0] * FEATURES]}
        with httpx.Client(timeout=60) as client:
            while not self._over.wait(PAUSE):
                began = time.monotonic()
                headers = {"connection": "close"} if self.answered % 2 else {}
                try:
                    answer = client.post(self._url, json=body, headers=headers)
                    why = "" if answer.status_code == httpx.codes.OK else f"{answer.status_code} {answer.text[:200]}"
                except httpx.HTTPError as error:
                    why = repr(error)
                if why:
                    self.failures.append(Failure(began, time.monotonic(), why))
                else:
                    self.answered += 1
