"""A forge to talk to: a real HTTP server on loopback that behaves as the documented APIs of GitHub, GitLab and Gitea do.

It has the state that matters here – statuses, requests, comments, accounts, rights, limits – and can be slow, down, moved or rude.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "canary-token-5d1f7c0e"
BOT = "flops-bot"


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    raw: bytes


@dataclass
class Answer:
    """What is answered; a body that is bytes is sent as it is."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


class Forge:
    """One repository `team/models` (or `team/group/models`) on a forge of a kind."""

    def __init__(self, kind: str = "github") -> None:
        self.kind = kind
        self.requests: list[Request] = []
        self.statuses: list[dict[str, Any]] = []
        self.comments: list[dict[str, Any]] = []
        self.merged: dict[str, int] = {}
        """Requests by the commit that they were merged as."""
        self.known: set[str] | None = None
        """Commits that exist; all when None."""
        self.may_push = True
        self.user_status = 200
        self.forced: list[Answer] = []
        """Answers that are given first, whatever is asked."""
        self.down: Answer | None = None
        self.trickle = self.hang = False
        self.per_page = 100
        self.hooks: list[Request] = []
        self._lock = threading.Lock()
        self._next = 100

    @property
    def api(self) -> str:
        """The base address."""
        return f"http://127.0.0.1:{self.port}/api"

    @contextmanager
    def serving(self, tls: ssl.SSLContext | None = None) -> Iterator[Forge]:
        """Listen while the body runs."""
        forge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                raw = self.rfile.read(length)
                parts = urlsplit(self.path)
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                body = json.loads(raw) if raw else None
                request = Request(
                    self.command, parts.path, query, {key.lower(): value for key, value in self.headers.items()}, body, raw
                )
                if forge.hang:
                    forge.requests.append(request)
                    while forge.hang:
                        time.sleep(0.01)
                    return
                if forge.trickle:
                    self._trickle()
                    return
                with forge._lock:
                    answer = forge.answer(request)
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for key, value in answer.headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def _trickle(self) -> None:
                """A header that never ends: each byte comes well within any limit of silence."""
                try:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                    while forge.trickle:
                        self.wfile.write(b"x")
                        self.wfile.flush()
                        time.sleep(0.01)
                except OSError:
                    return

            do_GET = do_POST = do_PATCH = do_PUT = do_HEAD = do_DELETE = _do  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.daemon_threads = True
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.hang = self.trickle = False
            server.shutdown()
            server.server_close()
            thread.join()

    def answer(self, request: Request) -> Answer:
        """What a forge says."""
        self.requests.append(request)
        if self.forced:
            return self.forced.pop(0)
        if self.down is not None:
            return self.down
        if request.path.startswith("/hook"):
            self.hooks.append(request)
            return Answer(200, {"ok": True})
        if self._token(request) != TOKEN:
            return Answer(401, {"message": "Bad credentials" if self.kind != "gitlab" else "401 Unauthorized"})
        path = request.path.removeprefix("/api")
        if path == "/user":
            key = "username" if self.kind == "gitlab" else "login"
            return Answer(
                self.user_status, {key: BOT} if self.user_status == 200 else {"message": "Resource not accessible by integration"}
            )
        return self._gitlab(request, path) if self.kind == "gitlab" else self._github(request, path)

    def _token(self, request: Request) -> str:
        if self.kind == "gitlab":
            return request.headers.get("private-token", "")
        scheme = "Bearer " if self.kind == "github" else "token "
        given = request.headers.get("authorization", "")
        return given.removeprefix(scheme) if given.startswith(scheme) else ""

    # --- GitHub, Gitea

    def _github(self, request: Request, path: str) -> Answer:
        found = re.fullmatch(r"/repos/team/models(/.*)?", path)
        if not found:
            return Answer(404, {"message": "Not Found"})
        rest, body = found[1] or "", request.body or {}
        if not rest and request.method == "GET":
            return Answer(200, {"full_name": "team/models", "permissions": {"pull": True, "push": self.may_push}})
        if match := re.fullmatch(r"/statuses/([0-9a-f]{40})", rest):
            if not self.may_push:
                return Answer(403, {"message": "Resource not accessible by personal access token"})
            if self.known is not None and match[1] not in self.known:
                return Answer(422, {"message": f"No commit found for SHA: {match[1]}"})
            if body.get("state") not in {"error", "failure", "pending", "success"} or len(body.get("description", "")) > 140:
                return Answer(422, {"message": "Validation Failed"})
            self.statuses.append({"sha": match[1], **body})
            return Answer(201, {"id": len(self.statuses)})
        if match := re.fullmatch(r"/commits/([0-9a-f]{40})/pulls", rest):
            found_here = [{"number": 1, "merged_at": None, "merge_commit_sha": None}]
            if match[1] in self.merged:
                found_here.append(
                    {"number": self.merged[match[1]], "merged_at": "2026-01-01T00:00:00Z", "merge_commit_sha": match[1]}
                )
            return self._paged(request, found_here) if self.kind == "github" else Answer(404, {"message": "Not Found"})
        if match := re.fullmatch(r"/commits/([0-9a-f]{40})/pull", rest):
            if self.kind == "github" or match[1] not in self.merged:
                return Answer(404, {"message": "The target couldn't be found."})
            return Answer(200, {"number": self.merged[match[1]], "merged": True, "merge_commit_sha": match[1]})
        if match := re.fullmatch(r"/issues/(\d+)/comments", rest):
            return self._thread(request, int(match[1]), lambda item: {"user": {"login": item["author"]}})
        if match := re.fullmatch(r"/issues/comments/(\d+)", rest):
            return self._change(request, "PATCH", int(match[1]))
        return Answer(404, {"message": "Not Found"})

    # --- GitLab

    def _gitlab(self, request: Request, path: str) -> Answer:
        found = re.fullmatch(r"/projects/team%2Fgroup%2Fmodels(/.*)?", path)
        if not found:
            return Answer(404, {"message": "404 Project Not Found"})
        rest, body = found[1] or "", request.body or {}
        if not rest:
            level = 40 if self.may_push else 20
            return Answer(200, {"permissions": {"project_access": None, "group_access": {"access_level": level}}})
        if match := re.fullmatch(r"/statuses/([0-9a-f]{40})", rest):
            if not self.may_push:
                return Answer(403, {"message": "403 Forbidden"})
            if self.known is not None and match[1] not in self.known:
                return Answer(404, {"message": "404 Commit Not Found"})
            if body.get("state") not in {"pending", "running", "success", "failed", "canceled", "skipped"}:
                return Answer(400, {"error": "state does not have a valid value"})
            last = next((item for item in reversed(self.statuses) if (item["sha"], item["name"]) == (match[1], body["name"])), None)
            if last and last["state"] == body["state"] == "running":
                said = 'Cannot transition status via :run from :running (Reason(s): Status cannot transition via "run")'
                return Answer(400, {"message": said})
            self.statuses.append({"sha": match[1], **body})
            return Answer(201, {"id": len(self.statuses)})
        if match := re.fullmatch(r"/repository/commits/([0-9a-f]{40})/merge_requests", rest):
            here = [{"iid": 1, "state": "opened", "merge_commit_sha": None}]
            if match[1] in self.merged:
                here.append(
                    {"iid": self.merged[match[1]], "state": "merged", "merge_commit_sha": match[1], "squash_commit_sha": None}
                )
            return self._paged(request, here)
        if match := re.fullmatch(r"/merge_requests/(\d+)/notes", rest):
            return self._thread(request, int(match[1]), lambda item: {"author": {"username": item["author"]}})
        if match := re.fullmatch(r"/merge_requests/(\d+)/notes/(\d+)", rest):
            return self._change(request, "PUT", int(match[2]))
        return Answer(404, {"error": "404 Not Found"})

    # --- both

    def say(self, thread: int, author: str, text: str) -> int:
        """Somebody comments."""
        self._next += 1
        self.comments.append({"id": self._next, "thread": thread, "author": author, "body": text})
        return self._next

    def _thread(self, request: Request, thread: int, author: Any) -> Answer:
        if request.method == "POST":
            number = self.say(thread, BOT, request.body["body"])
            return Answer(201, {"id": number, "body": request.body["body"]})
        return self._paged(
            request,
            [{"id": item["id"], "body": item["body"], **author(item)} for item in self.comments if item["thread"] == thread],
        )

    def _change(self, request: Request, method: str, number: int) -> Answer:
        found = next((item for item in self.comments if item["id"] == number), None)
        if found is None or request.method != method:
            return Answer(404, {"message": "Not Found"})
        if found["author"] != BOT:
            return Answer(403, {"message": "Forbidden"})
        found["body"] = request.body["body"]
        return Answer(200, {"id": number})

    def _paged(self, request: Request, items: list[Any]) -> Answer:
        size = min(int(request.query.get("per_page", "30")), self.per_page)
        page = int(request.query.get("page", "1"))
        shown = items[(page - 1) * size : page * size]
        more = page * size < len(items)
        # Where it leads is not where anybody should go.
        link = {"Link": f'<http://elsewhere.example.invalid/?page={page + 1}>; rel="next"'} if more else {}
        return Answer(200, shown, link)

    def of(self, sha: str = "", project: str = "") -> list[tuple[str, str]]:
        """The statuses that were set, (state, description), in order."""
        return [
            (item["state"], item["description"])
            for item in self.statuses
            if item["sha"].startswith(sha)
            and str(item.get("context") or item.get("name")).endswith(f"/{project}" if project else "")
        ]

    def writes(self) -> list[Request]:
        """The requests that changed something or tried to."""
        return [item for item in self.requests if item.method not in {"GET", "HEAD"}]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
