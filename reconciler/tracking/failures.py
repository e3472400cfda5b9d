"""MLflow's failures as ours: what can pass is transient, what has to be mended is not.

No address is shown with its credentials, wherever in a message it stands.
"""

from __future__ import annotations

import re

from reconciler.errors import TrackingError
from reconciler.refusals import disk_is_full

AGAIN = "It is asked again; nothing is lost."
_FULL = re.compile(r"disk is full|no space left|quota exceeded", re.IGNORECASE)
_NO_ANSWER = re.compile(r"failed with exception|Max retries exceeded|Connection (refused|aborted|reset)|timed out")
_GIVEN_UP = re.compile(r"too many (\d{3}) error responses")
_PASSING = {408, 409, 425, 429}


def redacted(text: str) -> str:
    """A text without the credentials of the addresses in it."""
    return re.sub(r"://[^/@\s'\"]+@", "://", text)


def unreachable(uri: str, reason: str) -> TrackingError:
    """For a server that does not answer."""
    return TrackingError("FL6001", f"MLflow at {redacted(uri)} does not answer: {_line(reason)}.", cure=AGAIN, transient=True)


def answered(uri: str, status: int, reason: str, *, code: str = "FL6002") -> TrackingError:
    """For an answer with an error status; `code` is that of a refusal."""
    if _FULL.search(reason):
        return disk_full(uri)
    if status >= 500 or status in _PASSING:
        text = f"MLflow at {redacted(uri)} fails with {status}: {_line(reason)}."
        return TrackingError("FL6004", text, cure=AGAIN, transient=True)
    text = f"MLflow at {redacted(uri)} refuses with {status}: {_line(reason)}."
    return TrackingError(code, text, cure="Check the credentials and the version of the tracking server.")


def disk_full(place: str) -> TrackingError:
    """For a model or a run that finds no room, here or on the server."""
    text = f"There is no space left for runs and models at {redacted(place)}."
    return TrackingError("FL6005", text, cure="Free some; it is tried again, and nothing is trained twice.", transient=True)


def translated(error: Exception, uri: str) -> TrackingError:
    """The error for what MLflow's client raised: its own exceptions, those of requests, or those of the file system."""
    if isinstance(error, TrackingError):
        return error
    response = getattr(error, "response", None)
    text = str(error)
    if isinstance(error, OSError) and disk_is_full(error):
        return disk_full(str(error.filename or uri))
    if response is not None:
        return answered(uri, int(response.status_code), text, code="FL6003")
    given_up = _GIVEN_UP.search(text)
    if given_up:
        return answered(uri, int(given_up[1]), "several times in a row")
    if _NO_ANSWER.search(text) or type(error).__module__.startswith("requests"):
        return unreachable(uri, text or type(error).__name__)
    status = getattr(error, "get_http_status_code", None)
    if status is not None:
        return answered(uri, int(status()), text, code="FL6003")
    text = f"A file of a run cannot be read or written: {_line(text)}."
    return TrackingError("FL6006", text, cure="Check the state directory.", transient=True)


def _line(text: str) -> str:
    lines = redacted(text).splitlines()
    return (lines[0] if lines else "no reason given").rstrip(".")[:300]
