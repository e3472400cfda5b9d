"""Metrics in Prometheus' form. What can be read from the loop is read when somebody asks; the rest is counted as it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reconciler.controller import Controller
from reconciler.journal import Event
from reconciler.publishing import Publisher
from reconciler.statusdoc import condition

_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)


class Metrics:
    """The metrics of one controller; as a listener of its observer it counts what is told."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.webhooks = Counter("flops_webhooks_total", "Webhooks by result.", ["forge", "result"], registry=self.registry)
        self.events = Counter("flops_events_total", "Events by kind.", ["kind"], registry=self.registry)
        self.reconciles = Counter("flops_reconcile_total", "Carried out plans by result.", ["result"], registry=self.registry)
        self.durations = Histogram(
            "flops_reconcile_duration_seconds", "Time that plans took.", ["result"], buckets=_BUCKETS, registry=self.registry
        )

    def __call__(self, event: Event) -> None:
        """One event of the observer."""
        self.events.labels(event.kind).inc()
        if event.kind == "ended":
            ending = str(event.data.get("ending", ""))
            self.reconciles.labels(ending).inc()
            self.durations.labels(ending).observe(float(event.data.get("seconds", 0.0)))

    def watch(self, controller: Controller, publisher: Publisher, monotonic: Callable[[], float]) -> None:
        """Show the state of a loop as well."""
        self.registry.register(_Loop(controller, publisher, monotonic))

    def text(self) -> bytes:
        """What `/metrics` answers."""
        return generate_latest(self.registry)


class _Loop(Collector):
    """The loop as it is at the moment of the question. It is read from another thread: only whole objects are taken."""

    def __init__(self, controller: Controller, publisher: Publisher, monotonic: Callable[[], float]) -> None:
        self._controller, self._publisher, self._monotonic = controller, publisher, monotonic

    def collect(self) -> Iterator[Metric]:
        """Every family, with its help."""
        controller = self._controller
        running = controller.running
        now = self._monotonic()
        yield GaugeMetricFamily("flops_queue_depth", "Projects with something to be done.", value=controller.queue.depth)
        yield GaugeMetricFamily("flops_running", "Projects that are worked on.", value=len(running))
        longest = max((now - since for since in running.values()), default=0.0)
        yield GaugeMetricFamily("flops_longest_running_seconds", "The longest of them.", value=longest)
        yield GaugeMetricFamily("flops_look_duration_seconds", "Time that the last look took.", value=controller.look_seconds)
        yield GaugeMetricFamily("flops_last_look_age_seconds", "Time since the last look.", value=now - controller.looked_at)
        yield CounterMetricFamily("flops_status_commits", "Commits of the status branch.", value=self._publisher.commits)
        yield CounterMetricFamily("flops_status_pushes", "Pushes of the status branch.", value=self._publisher.pushes)
        yield CounterMetricFamily("flops_status_push_retries", "Pushes tried again.", value=self._publisher.push_retries)
        for name, what, repos in (
            ("flops_git_fetches", "Fetches from the GitOps repo's remote by result.", controller.repo),
            ("flops_ml_repo_fetches", "Fetches from ML repos elsewhere by result.", controller.ml_repos),
        ):
            git = CounterMetricFamily(name, what, labels=["result"])
            failed = repos.failed_fetches
            git.add_metric(["done"], max(0, repos.fetches - failed))
            git.add_metric(["failed"], failed)
            yield git
        yield CounterMetricFamily("flops_status_failures", "Status that could not be pushed.", value=self._publisher.failures)
        told = CounterMetricFamily("flops_notifications", "Notifications by target and result.", labels=["target", "result"])
        waiting = GaugeMetricFamily("flops_notifications_waiting", "Notifications that wait to be sent.", labels=["target"])
        for sender in controller.notifier.senders:
            for result, count in sorted(sender.results.items()):
                told.add_metric([sender.name, result], count)
        for name, count in controller.notifier.waiting().items():
            waiting.add_metric([name], count)
        yield told
        yield waiting
        dropped = controller.notifier.dropped
        yield CounterMetricFamily("flops_notifications_dropped", "Notifications dropped as too many waited.", value=dropped)
        info = GaugeMetricFamily(
            "flops_project_info", "1 for each project.", labels=["project", "customer", "synced", "ready", "reason"]
        )
        for name, document in list(controller.ledger.documents.items()):
            synced, ready = condition(document, "Synced") or {}, condition(document, "Ready") or {}
            labels = [name, str(document.get("customer", "")), synced.get("status", ""), ready.get("status", "")]
            info.add_metric([*labels, synced.get("reason", "")], 1)
        yield info
