"""A forge that is slow, silent, rude or elsewhere: nobody waits for it, nothing newest is lost, and nothing is sent twice."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from reconciler.errors import NotifyError
from reconciler.notify import exchange, outbox
from reconciler.notify.channels import Webhook
from reconciler.notify.exchange import Exchange
from reconciler.notify.notice import State
from reconciler.secrets import Secret
from tests.notify.forge import TOKEN, Answer, Forge, free_port
from tests.notify.sending import A, B, Sending, hook, notice, target


@pytest.fixture
def github() -> Iterator[Forge]:
    with Forge("github").serving() as serving:
        yield serving


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(401, {"message": "Bad credentials"}), "FL9403"),
        (Answer(403, {"message": "Resource not accessible"}), "FL9403"),
        (Answer(404, {"message": "Not Found"}), "FL9404"),
        (Answer(500, b"<html>oops</html>"), "FL9407"),
        (Answer(502, b""), "FL9407"),
        (Answer(503, {"message": "later"}), "FL9407"),
        (Answer(301, b"", {"Location": "http://elsewhere.example.invalid/"}), "FL9408"),
        (Answer(307, b"", {"Location": "http://127.0.0.1:1/"}), "FL9408"),
        (Answer(429, {"message": "slow down"}), "FL9405"),
    ],
)
def test_what_is_not_taken_is_tried_again_and_said_once(github: Forge, tmp_path: Path, answer: Answer, code: str) -> None:
    sending = Sending(github, tmp_path)
    github.down = answer
    sending.put(notice())
    for _ in range(4):
        sending.run()
        sending.pass_time(outbox.MOST_SECONDS)
    assert len(github.requests) == 4
    assert [code in said for said in sending.said] == [True]
    github.down = None
    sending.run()
    assert [state for state, _ in github.of()] == ["success"]
    assert sending.said[1:] == ["github: is told again"]
    sending.pass_time(7200)
    sending.run()
    assert len(github.statuses) == 1


@pytest.mark.parametrize("status", [400, 410, 413, 422])
def test_what_is_refused_for_good_is_let_go(github: Forge, tmp_path: Path, status: int) -> None:
    sending = Sending(github, tmp_path)
    github.forced = [Answer(status, {"message": "Validation Failed"})]
    sending.put(notice("a"), notice("b"))
    sending.run()
    sending.pass_time(7200)
    sending.run()
    assert len(github.requests) == 2
    assert len(github.statuses) == 1
    assert "FL9406" in sending.said[0]
    assert sending.sender.results == {"refused": 1, "sent": 1}


def test_a_commit_that_the_forge_does_not_know_is_in_nobodys_way(github: Forge, tmp_path: Path) -> None:
    github.known = {A}
    sending = Sending(github, tmp_path)
    sending.put(notice("a", commit=B), notice("b", commit=A))
    sending.run()
    assert [item["sha"] for item in github.statuses] == [A]


def test_backoff_grows_and_ends_with_the_trouble(github: Forge, tmp_path: Path) -> None:
    sending = Sending(github, tmp_path)
    github.down = Answer(500)
    sending.put(notice())
    pauses = []
    for _ in range(14):
        sending.sender.step()
        pauses.append(sending.sender.step() or 0.0)
        sending.pass_time(pauses[-1])
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == 900.0


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry-After": "120"}, 120.0),
        (403, {"Retry-After": "60"}, 60.0),
        (503, {"Retry-After": "90"}, 90.0),
        (429, {}, 60.0),
        (429, {"Retry-After": "999999"}, exchange.LONGEST_PAUSE),
        (429, {"Retry-After": "-5"}, 60.0),
        (429, {"Retry-After": "soon"}, 60.0),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1300"}, 300.0),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "99999999999999999999"}, 60.0),
        (429, {"RateLimit-Remaining": "0", "RateLimit-Reset": "1300"}, 300.0),
    ],
)
def test_the_forges_word_on_when_to_come_back(
    github: Forge, tmp_path: Path, status: int, headers: dict[str, str], seconds: float
) -> None:
    # The server's own Date would count before our clock.
    github.forced = [Answer(status, {"message": "You have exceeded a secondary rate limit"}, {**headers})]
    sending = Sending(github, tmp_path, target(github, comments=True))
    for sender in sending.senders:
        for channel in sender.channels:
            channel._forge._exchange.clock = sending.wall  # type: ignore[attr-defined]
    sending.put(notice())
    _without_date(github, sending.sender.step)
    assert sending.sender.step() == pytest.approx(seconds, abs=1)
    sending.pass_time(seconds - 2)
    sending.run()
    assert len(github.requests) == 1, "the other channel of that token waits as well"
    sending.pass_time(3)
    sending.run()
    assert len(github.statuses) == 1


def _without_date(forge: Forge, do: object) -> None:
    """`http.server` writes a Date; its handler is told not to while `do` runs."""
    from http.server import BaseHTTPRequestHandler

    before = BaseHTTPRequestHandler.date_time_string
    BaseHTTPRequestHandler.date_time_string = lambda self, timestamp=None: ""  # type: ignore[method-assign]
    try:
        do()  # type: ignore[operator]
    finally:
        BaseHTTPRequestHandler.date_time_string = before  # type: ignore[method-assign]


def test_a_date_to_come_back_at_counts_from_the_forges_own_clock(github: Forge, tmp_path: Path) -> None:
    now = time.time()
    github.forced = [Answer(429, {}, {"Retry-After": formatdate(now + 300, usegmt=True)})]
    sending = Sending(github, tmp_path)
    sending.put(notice())
    sending.sender.step()
    assert sending.sender.step() == pytest.approx(300, abs=30)


def test_the_last_request_of_a_window_is_followed_by_a_pause(github: Forge, tmp_path: Path) -> None:
    reset = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(time.time()) + 600)}
    github.forced = [Answer(201, {"id": 1}, reset)]
    sending = Sending(github, tmp_path)
    sending.put(notice("a"), notice("b"))
    sending.sender.step()
    assert sending.sender.step() == pytest.approx(600, abs=30)
    assert len(github.requests) == 1


@pytest.mark.parametrize("how", ["hang", "trickle"])
def test_an_exchange_has_one_limit_for_all_of_it(github: Forge, how: str) -> None:
    setattr(github, how, True)
    asked = Exchange("forge", limit=0.3)
    begun = time.monotonic()
    with pytest.raises(NotifyError, match="FL9402"):
        asked("GET", f"{github.api}/user", {}, Secret(TOKEN))
    assert time.monotonic() - begun < 5


def test_an_answer_that_is_too_large_is_not_read(github: Forge) -> None:
    github.down = Answer(200, b"x" * (exchange.MAX_ANSWER + 1))
    with pytest.raises(NotifyError, match="FL9409"):
        Exchange("forge")("GET", f"{github.api}/user", {}, Secret(TOKEN))


def test_nobody_listens() -> None:
    with pytest.raises(NotifyError, match="FL9402"):
        Exchange("forge")("GET", f"http://127.0.0.1:{free_port()}/", {}, Secret(TOKEN))


def test_somebody_who_speaks_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def rude() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"220 mail.example.invalid ESMTP\r\n")
            connection.close()

        thread = threading.Thread(target=rude)
        thread.start()
        with pytest.raises(NotifyError, match="FL9402"):
            Exchange("forge")("GET", f"http://127.0.0.1:{port}/", {}, Secret(TOKEN))
        thread.join()


@pytest.mark.parametrize("body", [b"[1, 2", b"null", b"[]", b'"text"', b'{"number": "x"}', b'[{"number": {}, "merged_at": 1}]'])
def test_an_answer_of_no_known_form(github: Forge, tmp_path: Path, body: bytes) -> None:
    sending = Sending(github, tmp_path, target(github, comments=True, statuses=False, author="bot"))
    github.down = Answer(200, body)
    sending.put(notice())
    sending.run()
    github.down = None
    sending.pass_time(60)
    sending.run()
    assert sending.sender.step() is None


def test_one_that_hangs_delays_no_other(github: Forge, tmp_path: Path) -> None:
    with Forge("gitlab").serving() as other:
        github.hang = True
        sending = Sending(github, tmp_path, target(github), target(other), hook(other), monotonic=time.monotonic)
        sending.put(notice())
        for sender in sending.senders:
            sender.start()
        for sender in sending.senders[1:]:
            sender.flush(10)
        assert (len(other.statuses), len(other.hooks)) == (1, 1)
        assert not github.statuses
        github.hang = False
        for sender in sending.senders:
            sender.close()


def test_while_it_is_down_only_the_newest_waits(github: Forge, tmp_path: Path) -> None:
    sending = Sending(github, tmp_path)
    github.down = Answer(503)
    for number in range(5):
        sending.put(notice(state=State.PENDING, key=f"round {number}"))
        sending.run()
    sending.put(notice(state=State.FAILURE, message="first"), notice("b"))
    sending.put(notice(state=State.SUCCESS, message="newest"))
    assert sending.outbox.waiting("github") == 2
    github.down = None
    sending.pass_time(900)
    sending.run()
    assert github.of(project="digits") == [("success", "Healthy: newest")]
    assert len(github.statuses) == 2


def test_a_restart_sends_what_waits_and_nothing_twice(github: Forge, tmp_path: Path) -> None:
    sending = Sending(github, tmp_path)
    sending.put(notice("a"))
    sending.run()
    github.down = Answer(503)
    sending.put(notice("b"))
    sending.run()
    sending.journal.close()
    github.down = None
    sending.start()
    sending.put(notice("a"))
    sending.run()
    assert [item["context"] for item in github.statuses] == ["flops/prod/a", "flops/prod/b"]


def test_back_to_what_was_sent_before_anybody_heard_otherwise(github: Forge, tmp_path: Path) -> None:
    sending = Sending(github, tmp_path)
    sending.put(notice())
    sending.run()
    sending.put(notice(state=State.FAILURE))
    sending.put(notice())
    sending.run()
    assert [state for state, _ in github.of()] == ["success"]


def test_what_changes_while_it_is_on_its_way_is_sent_after_it(github: Forge, tmp_path: Path) -> None:
    sending = Sending(github, tmp_path)
    sending.put(notice())
    sending.run()
    sending.put(notice(state=State.FAILURE))
    on_its_way = sending.outbox.next("github")
    assert on_its_way
    sending.put(notice())  # as it was before, while the failure is being sent
    sending.outbox.sent([on_its_way])
    sending.run()
    assert [state for state, _ in github.of()] == ["success", "success"]


def test_what_flaps_is_told_more_and_more_rarely(github: Forge, tmp_path: Path) -> None:
    sending = Sending(github, tmp_path)
    for number in range(2000):  # an hour of a service that dies every other second
        sending.put(notice(state=State.PENDING if number % 2 else State.SUCCESS), notice("calm"))
        sending.run()
        sending.pass_time(1.8)
    assert len(github.of(project="digits")) < 40
    assert len(github.of(project="calm")) == 1
    sending.put(notice(state=State.FAILURE))
    sending.pass_time(outbox.MOST_SECONDS)
    sending.run()
    assert github.of(project="digits")[-1][0] == "failure"


def test_a_commit_that_is_overtaken_does_not_stay_pending(github: Forge, tmp_path: Path) -> None:
    sending = Sending(github, tmp_path)
    sending.put(notice(state=State.PENDING))
    sending.run()
    sending.put(notice(commit=B, state=State.PENDING))
    sending.run()
    assert [(item["sha"], item["state"]) for item in github.statuses] == [(A, "pending"), (A, "error"), (B, "pending")]
    assert "Superseded" in github.statuses[1]["description"]
    sending.put(notice(commit=B))
    sending.run()
    with sending.journal.transaction() as database:
        assert database.execute("SELECT COUNT(*) FROM outbox").fetchone() == (1,), "nobody asks for the old commit any more"


def test_too_much_that_waits_is_dropped_and_counted(github: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 10)
    sending = Sending(github, tmp_path)
    github.down = Answer(503)
    assert sending.put(*(notice(f"p{number:02}") for number in range(10))) == 0
    assert sending.put(*(notice(f"q{number}") for number in range(3))) == 3
    github.down = None
    sending.run()
    assert sorted(item["context"].rpartition("/")[2] for item in github.statuses)[:2] == ["p03", "p04"]


def test_a_damaged_record_is_in_nobodys_way(github: Forge, tmp_path: Path) -> None:
    sending = Sending(github, tmp_path)
    sending.put(notice("a"), notice("b"), notice("c"))
    with sending.journal.transaction() as database:
        database.execute("UPDATE outbox SET notice = '{' WHERE project = 'a'")
        database.execute("""UPDATE outbox SET notice = '{"state": 7}' WHERE project = 'b'""")
    for _ in range(3):
        sending.run()
    assert [item["context"] for item in github.statuses] == ["flops/prod/c"]


@pytest.mark.parametrize("token", ["with a blank", "line\nbreak", "ümlaut", "tab\tin it"])
def test_a_token_that_no_header_can_carry_is_not_shown(github: Forge, tmp_path: Path, token: str) -> None:
    sending = Sending(github, tmp_path, environ={"TOKEN": token})
    sending.put(notice())
    sending.run()
    assert "FL9410" in sending.said[0]
    assert token not in sending.said[0]
    assert not github.requests


def test_a_missing_secret_is_said_and_asked_for_again(github: Forge, tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    sending = Sending(github, tmp_path, environ=environ)
    sending.put(notice())
    sending.run()
    assert "FL9601" in sending.said[0]
    environ["TOKEN"] = TOKEN
    sending.pass_time(60)
    sending.run()
    assert len(github.statuses) == 1


def test_a_forge_that_repeats_the_secret_is_not_quoted(github: Forge, tmp_path: Path) -> None:
    github.down = Answer(401, {"message": f"the token {TOKEN} is \x1b[31mwrong"})
    sending = Sending(github, tmp_path, target(github), hook(github))
    sending.put(notice())
    sending.run()
    assert len(sending.said) == 2
    assert not [said for said in sending.said if TOKEN in said or "\x1b" in said]


def test_a_webhook_that_redirects_gets_no_signature_elsewhere(github: Forge, tmp_path: Path) -> None:
    with Forge("github").serving() as elsewhere:
        github.down = Answer(308, b"", {"Location": f"http://127.0.0.1:{elsewhere.port}/hook"})
        sending = Sending(github, tmp_path, hook(github))
        sending.put(notice())
        sending.run()
        assert not elsewhere.requests
        assert isinstance(sending.sender.channels[0], Webhook)
