"""From the operator's settings to channels, and the look at each of them that `flops doctor` takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from reconciler.notify.channels import Channel, Comments, Statuses, Webhook
from reconciler.notify.exchange import Exchange
from reconciler.notify.forges import FORGES, Forge
from reconciler.notify.origin import home
from reconciler.notify.outbox import Outbox
from reconciler.secrets import Secret, resolve
from reconciler.spec.notify import NotifyTarget


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


def examine(target: NotifyTarget, remote_url: str, environ: Mapping[str, str]) -> str:
    """Look at a target without writing; what is to be said of it. Raises NotifyError or SecretError when it could not be told."""
    if target.url is not None:
        secret = resolve(target.secret_ref, environ=environ)
        # Whatever it answers to a HEAD, it is there.
        status = Exchange(target.name)("HEAD", target.url, {}, secret, checked=False).status
        return f"answers (status {status}); whether it accepts our signature is seen with the first message"
    told = forge(target, remote_url, environ)
    may = told.may_write()
    commenter = f", comments as {told.me()}" if target.comments else ""
    if may is None:
        return f"shows the repository{commenter}; it does not say whether the token may write"
    return f"shows the repository{commenter}" + ("" if may else "; the token may not write to it")


def _secret(target: NotifyTarget, environ: Mapping[str, str]) -> Callable[[], Secret]:
    """Reads it each time: a renewed one counts at once."""
    return partial(resolve, target.secret_ref, environ=environ)
