"""The operator's side of a SuperLink: which keys are allowed, which nodes are there, which runs exist.

All through Flower's own Control and Runtime APIs. Their clients are used without Flower's retry helper: on some answers that
one interrupts the whole process, and here that would be the reconciler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import user_config_from_proto, user_config_to_proto
from flwr.proto import control_pb2 as control
from flwr.proto import fab_pb2, runtime_pb2
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient

from reconciler.errors import TrainingError
from reconciler.nodes.fab import AppBundle
from reconciler.nodes.fleet import Hold
from reconciler.nodes.superlink_server import OPERATOR_HEADER

DIGEST_KEY = "digest"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_HOLD = 0.3
"""Seconds for which a question for replies is held; the aggregator's next message waits for it."""
Sleep = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Access:
    """How the operator reaches a SuperLink: `address` is host:port; without TLS on this machine's loopback only."""

    address: str
    secret: str = ""
    root_certificates: bytes | None = None
    insecure: bool = False
    superexec_secret: bytes | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A key that the SuperLink knows. `last_seen` is seconds since the epoch, 0 for never."""

    node_id: int
    name: str
    public_key: bytes
    connected: bool
    last_seen: float


@dataclass(frozen=True, slots=True)
class Run:
    """A run on the SuperLink; `finished` is empty, or how it ended: completed, failed, stopped."""

    run_id: int
    digest: str
    fab_hash: str
    finished: str


class SuperLink:
    """One SuperLink, as its operator. Methods raise TrainingError: FL5801 (transient) when it does not answer."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._control = ControlHttpClient.from_server_address(*self._where(), self._interceptors())

    def _where(self) -> tuple[str, bool, bytes | None]:
        return self.access.address, self.access.insecure, self.access.root_certificates

    def _interceptors(self) -> list[Any]:
        return [_OperatorHeader(self.access.secret)] if self.access.secret else []

    def close(self) -> None:
        """Ends the connection."""
        self._control.close()

    # --- nodes ----------------------------------------------------------------------------------------------------------

    def members(self) -> list[Member]:
        """Every key that may take part, with what is known of its node."""
        with told():
            answer = self._control.ListNodes(control.ListNodesRequest())
        return [_member(info) for info in answer.nodes_info if info.status != "unregistered"]

    def allow(self, keys: Mapping[str, bytes]) -> dict[str, int]:
        """Makes these keys, by node name, and no others the allowed ones; returns the node ids by name."""
        known = {member.public_key: member for member in self.members()}
        ids: dict[str, int] = {}
        for name, key in keys.items():
            member = known.pop(key, None)
            if member is not None and member.name == name:
                ids[name] = member.node_id
                continue
            if member is not None:
                self._forget(member)
            with told():
                ids[name] = self._control.RegisterNode(control.RegisterNodeRequest(public_key=key, name=name)).node_id
        for member in known.values():
            self._forget(member)
        return ids

    def _forget(self, member: Member) -> None:
        with told():
            self._control.UnregisterNode(control.UnregisterNodeRequest(node_id=member.node_id))

    # --- runs -----------------------------------------------------------------------------------------------------------

    def runs(self) -> list[Run]:
        """The latest runs, newest first."""
        with told():
            answer = self._control.ListRuns(control.ListRunsRequest(limit=200))
        found = sorted(answer.run_dict.values(), key=lambda run: str(run.pending_at), reverse=True)
        return [_run(run) for run in found]

    def submit(self, bundle: AppBundle, digest: str) -> int:
        """Starts a run of this bundle and returns its id. The digest is the run's identity."""
        request = control.StartRunRequest(
            fab=fab_pb2.Fab(hash_str=bundle.hash, content=bundle.content),
            override_config=user_config_to_proto({DIGEST_KEY: digest}),
        )
        with told():
            run_id = int(self._control.StartRun(request).run_id)
        if not run_id:
            raise TrainingError(
                "FL5804",
                f"The SuperLink does not take the app bundle of {len(bundle.content):,} bytes.",
                cure="Take large files out of the ML repo; data belongs on the nodes.",
            )
        return run_id

    def stop(self, run_id: int) -> None:
        """Stops a run; nothing when it has ended already."""
        try:
            with told():
                self._control.StopRun(control.StopRunRequest(run_id=run_id))
        except TrainingError as error:
            if error.transient:
                raise

    def claim(self, run_id: int, sleep: Sleep = time.sleep) -> str:
        """Becomes the ServerApp of a run; returns the token. Other runs that nobody claimed are stopped on the way.

        They are left over from a reconciler that died between submitting and claiming; whoever wants them submits again.
        """
        interceptors = self._interceptors()
        if self.access.superexec_secret is not None:
            interceptors.append(
                SuperExecAuthHttpInterceptor(master_secret=self.access.superexec_secret, protected_methods=[_ACQUIRE])
            )
        client = RuntimeHttpClient.from_server_address(*self._where(), interceptors)
        try:
            request = runtime_pb2.AcquireTaskRequest(supported_task_types=[str(TaskType.SERVER_APP)])
            for _ in range(100):
                with told():
                    answer = client.AcquireTask(request)
                if not answer.token:
                    sleep(0.05)
                    continue
                if answer.task.run_id == run_id:
                    return str(answer.token)
                self.stop(int(answer.task.run_id))
        finally:
            client.close()
        raise TrainingError(
            "FL5802",
            "The SuperLink does not hand out its run.",
            cure="It has to run with `--isolation process`, and nothing else may take its ServerApp tasks.",
            transient=True,
        )

    def runtime(self, token: str) -> RuntimeHttpClient:
        """Flower's Runtime API as the ServerApp that holds a token; to be closed."""
        interceptors = [*self._interceptors(), RuntimeTokenHttpInterceptor(token), Hold(_HOLD)]
        return RuntimeHttpClient.from_server_address(*self._where(), interceptors)


class _OperatorHeader:
    """Shows the operator's secret to a SuperLink of ours."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[OPERATOR_HEADER] = self._secret
        response: httpx.Response = call_next(context)
        return response


@contextmanager
def told() -> Iterator[None]:
    """Flower's ways to fail, as ours."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise TrainingError(
            "FL5801" if status >= 500 else "FL5802",
            f"The SuperLink answers {status}: {error.response.text[:200]}.",
            cure="It is tried again." if status >= 500 else "See its log with `flops federation logs`.",
            transient=status >= 500,
        ) from error
    except (httpx.TransportError, ValueError) as error:
        raise TrainingError(
            "FL5801", f"The SuperLink does not answer: {error}.", cure="It is tried again; see its log.", transient=True
        ) from error


def _member(info: Any) -> Member:
    connected = info.status == "online"
    seen = info.online_until - 2 * info.heartbeat_interval if connected else info.online_until
    return Member(int(info.node_id), str(info.name), bytes(info.public_key), connected, max(0.0, float(seen or 0.0)))


def _run(run: Any) -> Run:
    finished = str(run.status.sub_status or SubStatus.FAILED) if run.status.status == Status.FINISHED else ""
    config = user_config_from_proto(run.override_config)
    return Run(int(run.run_id), str(config.get(DIGEST_KEY, "")), str(run.fab_hash), finished)
