"""From the operator's settings to channels, and the look at each of them that `flops doctor` takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from reconciler.notify.channels import Channel, Comments, Statuses, Webhook
from reconciler.notify.exchange import Exchange
from reconciler.notify.forges import FORGES, Forge
from reconciler.notify.origin import home
from reconciler.notify.outbox import Outbox
from reconciler.secrets import Secret, resolve
from reconciler.spec.notify import NotifyTarget


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a target showed; `may_write` is None where that is not known."""

    text: str
    may_write: bool | None = None


def channels(target: NotifyTarget, remote_url: str, outbox: Outbox, environ: Mapping[str, str]) -> Sequence[Channel]:
    """How a target is told. Raises NotifyError FL9401."""
    if target.url is not None:
        return [Webhook(target.name, target.url, _secret(target, environ), Exchange(target.name), time.time)]
    told = forge(target, remote_url, environ)
    found: list[Channel] = [Statuses(target.name, told)] if target.statuses else []
    return [*found, Comments(f"{target.name}/comments", told, outbox)] if target.comments else found


def forge(target: NotifyTarget, remote_url: str, environ: Mapping[str, str]) -> Forge:
    """The forge of a target. Raises NotifyError FL9401."""
    return FORGES[target.type](target, home(target, remote_url), _secret(target, environ), Exchange(target.name))


def look_at(target: NotifyTarget, remote_url: str, environ: Mapping[str, str]) -> Look:
    """Look at a target without writing. Raises NotifyError or SecretError when it could not be told."""
    if target.url is not None:
        secret = resolve(target.secret_ref, environ=environ)
        # Whatever it answers to a HEAD, it is there.
        status = Exchange(target.name)("HEAD", target.url, {}, secret, checked=False).status
        return Look(f"answers (status {status} to HEAD); only a message shows whether it accepts the signature")
    told = forge(target, remote_url, environ)
    may_write = told.may_write()
    commenter = f", comments as {told.me()}" if target.comments else ""
    unsaid = "; it does not say whether the token may write" if may_write is None else ""
    return Look(f"shows the repository{commenter}{unsaid}", may_write)


def _secret(target: NotifyTarget, environ: Mapping[str, str]) -> Callable[[], Secret]:
    """Reads it each time: a renewed one counts at once."""
    return partial(resolve, target.secret_ref, environ=environ)
