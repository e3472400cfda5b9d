"""Forges by their REST APIs: commit statuses, the pull or merge request that a commit came with, and comments on it.

GitHub's shape is also Gitea's and Forgejo's but for one path and one header; GitLab has its own. What a forge answers is used as
little as possible: numbers of requests and comments, authors, and whether there is a next page – never an address.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import orjson

from reconciler.errors import NotifyError
from reconciler.notify.exchange import Exchange, Reply, bearer
from reconciler.notify.notice import Notice, State
from reconciler.notify.origin import Home
from reconciler.secrets import Secret
from reconciler.spec.notify import NotifyTarget

MAX_PAGES = 30
_PAGE = 100


class Forge(ABC):
    """One repository of a forge. Every method raises NotifyError, and SecretError for a secret that is not there."""

    def __init__(self, target: NotifyTarget, home: Home, secret: Callable[[], Secret], exchange: Exchange) -> None:
        self.name, self._home = target.name, home
        self._secret, self._exchange = secret, exchange
        self._link, self._author = target.link or "", target.author or ""
        self.pause = 0.0
        """Seconds for which the forge wants nothing more, as it said last."""

    @abstractmethod
    def set_status(self, notice: Notice) -> None:
        """Set the status of a commit in the notice's context."""

    @abstractmethod
    def thread_of(self, commit: str) -> str:
        """The number of the pull or merge request that was merged as a commit; empty when it was pushed without one."""

    @abstractmethod
    def comments(self, thread: str) -> Iterator[tuple[str, str, str]]:
        """The comments of a request: id, author, text."""

    @abstractmethod
    def write_comment(self, thread: str, comment: str, text: str) -> str:
        """Replace a comment, or write a new one when `comment` is empty; its id."""

    @abstractmethod
    def may_write(self) -> bool | None:
        """Look at the repository: whether the token may write there, None where the forge does not say. Writes nothing."""

    @abstractmethod
    def _headers(self, token: str) -> dict[str, str]: ...

    def me(self) -> str:
        """Who comments."""
        if not self._author:
            try:
                found = self._json("GET", "/user")
                self._author = str(found.get("login") or found.get("username") or "") if isinstance(found, dict) else ""
            except NotifyError as error:
                if error.code not in {"FL9403", "FL9404"}:
                    raise
            if not self._author:
                cause = f"{self.name} does not say whose token it is."
                cure = "Set `author` in flops.yaml, such as github-actions[bot]."
                raise NotifyError("FL9411", cause, cure=cure, transient=True)
        return self._author

    def _status(self, notice: Notice, states: Mapping[State, str], key: str) -> dict[str, str]:
        body = {"state": states[notice.state], key: notice.context, "description": notice.description}
        return body | ({"target_url": self._link.replace("{project}", quote(notice.project, safe=""))} if self._link else {})

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        secret = self._secret()
        headers = self._headers(bearer(secret)) | ({"Content-Type": "application/json"} if body else {})
        content = orjson.dumps(body) if body else b""
        reply = self._exchange(method, self._home.api + path, headers, secret, content=content)
        self.pause = reply.pause
        return reply

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._ask(method, path, body).json()

    def _pages(self, path: str) -> Iterator[Mapping[str, Any]]:
        """The items of a list over its pages. The next page's address is never followed: only its number is counted up."""
        for page in range(1, MAX_PAGES + 1):
            reply = self._ask("GET", f"{path}{'&' if '?' in path else '?'}page={page}")
            found = reply.json()
            yield from (item for item in found if isinstance(item, dict)) if isinstance(found, list) else ()
            if not re.search(r'rel="?next"?', reply.headers.get("link", "")):
                return


class GitHub(Forge):
    """GitHub, github.com or a server of one's own."""

    _STATES: Mapping[State, str] = {
        State.PENDING: "pending", State.SUCCESS: "success", State.FAILURE: "failure", State.ERROR: "error",
        State.SUPERSEDED: "error",
    }  # fmt: skip

    @property
    def _repo(self) -> str:
        return f"/repos/{quote(self._home.repository)}"

    def set_status(self, notice: Notice) -> None:
        self._ask("POST", f"{self._repo}/statuses/{quote(notice.commit)}", self._status(notice, self._STATES, "context"))

    def thread_of(self, commit: str) -> str:
        found = [
            item for item in self._pages(f"{self._repo}/commits/{quote(commit)}/pulls?per_page={_PAGE}") if item.get("merged_at")
        ]
        exact = [item for item in found if item.get("merge_commit_sha") == commit]
        return _number(exact or found, "number")

    def comments(self, thread: str) -> Iterator[tuple[str, str, str]]:
        for item in self._pages(f"{self._repo}/issues/{thread}/comments?per_page={_PAGE}"):
            yield _comment(item, "user", "login")

    def write_comment(self, thread: str, comment: str, text: str) -> str:
        path = f"{self._repo}/issues/comments/{comment}" if comment else f"{self._repo}/issues/{thread}/comments"
        return _number([self._json("PATCH" if comment else "POST", path, {"body": text})], "id")

    def may_write(self) -> bool | None:
        found = self._json("GET", self._repo)
        allowed = found.get("permissions") if isinstance(found, dict) else None
        return bool(allowed.get("push")) if isinstance(allowed, dict) else None

    def _headers(self, token: str) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"
        }  # fmt: skip


class Gitea(GitHub):
    """Gitea and Forgejo."""

    def thread_of(self, commit: str) -> str:
        try:
            found = self._json("GET", f"{self._repo}/commits/{quote(commit)}/pull")
        except NotifyError as error:
            if error.code == "FL9404":
                return ""
            raise
        return _number([found] if isinstance(found, dict) and found.get("merged") else [], "number")

    def _headers(self, token: str) -> dict[str, str]:
        return {"Authorization": f"token {token}", "Accept": "application/json"}


class GitLab(Forge):
    """GitLab."""

    # `running` and not `pending`: GitLab lets nothing go from running back to pending.
    _STATES: Mapping[State, str] = {
        State.PENDING: "running", State.SUCCESS: "success", State.FAILURE: "failed", State.ERROR: "failed",
        State.SUPERSEDED: "canceled",
    }  # fmt: skip

    @property
    def _project(self) -> str:
        return f"/projects/{quote(self._home.repository, safe='')}"

    def set_status(self, notice: Notice) -> None:
        try:
            self._ask("POST", f"{self._project}/statuses/{quote(notice.commit)}", self._status(notice, self._STATES, "name"))
        except NotifyError as error:
            # What is running cannot begin to run, says GitLab; then what we wanted to say is said.
            if error.code != "FL9406" or "Cannot transition status" not in error.cause:
                raise

    def thread_of(self, commit: str) -> str:
        path = f"{self._project}/repository/commits/{quote(commit)}/merge_requests?per_page={_PAGE}"
        found = [item for item in self._pages(path) if item.get("state") == "merged"]
        exact = [item for item in found if commit in (item.get("merge_commit_sha"), item.get("squash_commit_sha"))]
        return _number(exact or found, "iid")

    def comments(self, thread: str) -> Iterator[tuple[str, str, str]]:
        for item in self._pages(f"{self._project}/merge_requests/{thread}/notes?per_page={_PAGE}&sort=asc&order_by=created_at"):
            yield _comment(item, "author", "username")

    def write_comment(self, thread: str, comment: str, text: str) -> str:
        notes = f"{self._project}/merge_requests/{thread}/notes"
        path = f"{notes}/{comment}" if comment else notes
        return _number([self._json("PUT" if comment else "POST", path, {"body": text})], "id")

    def may_write(self) -> bool | None:
        found = self._json("GET", self._project)
        allowed = found.get("permissions") if isinstance(found, dict) else None
        if not isinstance(allowed, dict):
            return None
        levels = [item.get("access_level", 0) for item in allowed.values() if isinstance(item, dict)]
        return max(levels, default=0) >= 30  # Developer

    def _headers(self, token: str) -> dict[str, str]:
        return {"PRIVATE-TOKEN": token, "Accept": "application/json"}


FORGES: Mapping[str, type[Forge]] = {"github": GitHub, "gitlab": GitLab, "gitea": Gitea, "forgejo": Gitea}


def _comment(item: Mapping[str, Any], who: str, name: str) -> tuple[str, str, str]:
    author = item.get(who)
    return _number([item], "id"), str(author.get(name) or "") if isinstance(author, dict) else "", str(item.get("body") or "")


def _number(items: list[Any], key: str) -> str:
    """The first one's number, as text; what is no number leads to no address."""
    value = items[0].get(key) if items and isinstance(items[0], dict) else None
    return str(value) if isinstance(value, int) and value > 0 else ""
