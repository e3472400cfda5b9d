"""The loop: look, start what is to be done, look again when something ended or somebody said so. `flops serve` and
`flops reconcile --once` are the same loop; the one goes on, the other ends when nothing is left to do.

Level-triggered: a trigger only says "look", and a look sees everything. A project is worked on by one worker at a time, projects
side by side within the budget. What is running when newer content arrives is superseded or finished, as the newer content says.
Nothing of one project – its ML repo, its customer's registry, its stages – stops the loop for the others, and neither does the
status branch: status is told beside the loop.

One thread decides (`step`); workers only put what came of their work into a queue. So there is nothing to lock but that queue.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from reconciler.asking import PATIENCE
from reconciler.engine import Engine
from reconciler.errors import FlopsError
from reconciler.events import Complaints, Observer
from reconciler.execution import Ending, Execution, unexpected
from reconciler.federations import Federations
from reconciler.leadership import Leadership
from reconciler.lease import TERM, Lease
from reconciler.ledger import Finished, Ledger
from reconciler.looking import Looker, ProjectView, View
from reconciler.notify.notifier import open_notifier
from reconciler.pace import Pace
from reconciler.plan import Change
from reconciler.publishing import Publisher
from reconciler.revisions import Revisions
from reconciler.running import Convergence, Execute, Run, StagesExecutor
from reconciler.turns import declares_nothing, nothing_declared, somebody_else, stopped, waits_for, why_superseded, work_key
from reconciler.workqueue import WorkQueue

MAX_TRIES = 6
Waiter = Callable[[threading.Condition, float | None], object]


class Controller:
    """The loop over one engine. Clock, waiting, randomness and the workers are passed in."""

    def __init__(
        self,
        engine: Engine,
        observer: Observer,
        *,
        execute: Execute | None = None,
        pool: Executor | None = None,
        publisher: Publisher | None = None,
        lease: Lease | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Waiter = lambda changed, seconds: changed.wait(seconds),
        uniform: Callable[[float, float], float] = random.uniform,
        patience: float = PATIENCE,
    ) -> None:
        parallel = engine.config.budget.max_parallel
        self._engine, self._observer = engine, observer
        self.repo, self.ml_repos = engine.repo, engine.ml_repos
        self._execute = execute or StagesExecutor(engine, observer)
        self._pool = pool or ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="project")
        self._asking = pool or ThreadPoolExecutor(max_workers=4, thread_name_prefix="ml-repo")
        self._monotonic, self._wait = monotonic, wait
        self._publisher = publisher or Publisher(engine.status, lambda text: observer.tell("", "warning", text))
        self.notifier = open_notifier(engine.config, engine.journal, engine.repo, observer)
        lease = lease or Lease(engine.journal, monotonic=monotonic)
        self.leadership = Leadership(lease, partial(observer.tell, ""), self._call_off)
        poll, self._patience = engine.config.poll_interval, patience
        look_again = partial(self.wake, fetch=False)
        self.revisions = Revisions(engine.ml_repos, self._asking, look_again, monotonic=monotonic, uniform=uniform, refresh=poll)
        self._looker = Looker(engine, self.revisions, changed=look_again, monotonic=monotonic)
        self._federations = Federations(engine, self._asking, look_again, monotonic=monotonic, uniform=uniform)
        self._pace = Pace(poll, uniform)
        self.queue = WorkQueue(parallel, uniform)
        self.ledger = Ledger()
        self.view: View | None = None
        self._runs: dict[str, Run] = {}
        self._finished: dict[str, Finished] = {}
        self._executions: dict[str, Execution] = {}
        self._complain = Complaints(observer)
        self._tries = MAX_TRIES
        self._stop = threading.Event()
        # Shared with other threads, behind `_changed`: what ended, and whether to look (and to fetch).
        self._changed = threading.Condition()
        self._done: deque[tuple[str, Execution]] = deque()
        self._asked: bool | None = None

    # --- from outside, in any thread

    def wake(self, *, fetch: bool = True) -> None:
        """Somebody saw something: look soon; with `fetch` at the remote too. Many calls make one look."""
        with self._changed:
            self._asked = fetch or bool(self._asked)
            self._changed.notify_all()

    def stop(self) -> None:
        """Call off what runs and end; finished rounds are kept. May be called by a signal handler."""
        self._stop.set()
        # A handler may have interrupted the loop in its lock; then it looks at the event when its wait is over.
        if self._changed.acquire(blocking=False):
            self._changed.notify_all()
            self._changed.release()

    @property
    def running(self) -> Mapping[str, float]:
        """The projects that are worked on, and since when (monotonic seconds)."""
        return {name: run.started for name, run in list(self._runs.items())}

    @property
    def looked_at(self) -> float:
        """When the last look ended (monotonic seconds)."""
        return self._pace.ended

    @property
    def look_seconds(self) -> float:
        """How long the last look took."""
        return self._pace.cost

    # --- the two ways to run, and a look alone

    def look(self, *, fetch: bool = True) -> View:
        """A look that waits for everything it asks for, and changes nothing (`flops plan`)."""
        looker = Looker(self._engine)
        if fetch and (fetched := looker.fetch(wanted=True)) and fetched.error:
            self._complain(fetched.error)
        return looker.look(self._publisher.load(), complain=self._complain)

    def converge(self, tries: int = MAX_TRIES) -> Convergence:
        """Until nothing is left to do, or what is left failed `tries` times (`flops reconcile --once`)."""
        self._tries = tries
        if not self.leadership.lease.try_acquire():
            raise somebody_else()
        with self.leadership.kept():
            self.wake()
            while not self._stop.is_set() and not self.leadership.lost:
                pause = self.step()
                if self._idle():
                    break
                self._rest(pause)
            self._end()
        if self.view is None or self.leadership.lost:
            raise stopped()
        retrying = any(item.ending in {Ending.TRANSIENT, Ending.CANCELLED} for item in self._executions.values())
        known = not (self.view.unreachable or self.view.waiting or self._federations.failing)
        return Convergence(self.view, dict(self._executions), known and not retrying)

    def serve(self) -> None:
        """Go on until `stop`: looks are asked for by triggers, and made by the clock where no trigger can be relied on.

        Beside another controller of the same state directory it waits for its turn, and waits again when it lost it.
        """
        self._pace.serving = True
        self._looker.be_patient(self._patience)
        while not self._stop.is_set():
            if not self.leadership.gained(self._complain):
                with self._changed:
                    if not self._stop.is_set():
                        self._wait(self._changed, TERM / 5)
                continue
            with self.leadership.kept():
                self.wake()
                while not self._stop.is_set() and not self.leadership.lost:
                    self._rest(self.step())
                self._drain()
            if not self._stop.is_set() and self.leadership.given_up():
                self.view, self._finished = None, {}
        self._end()

    def _call_off(self) -> None:
        """The lead is lost: call off everything, start nothing, tell nothing."""
        self.notifier.rest()
        with self._changed:
            self._changed.notify_all()

    def step(self) -> float | None:
        """Everything that can be decided now; seconds until there is something to decide without a trigger."""
        now = self._monotonic()
        self._collect(now)
        busy = self.queue.has_room and self.queue.has_due(now)
        asked = self._asked is not None or (self.view is None and not self._pace.bad_looks)
        if self._pace.wants(now, asked=asked, owed=bool(self._finished), busy=busy):
            self._look(now)
            now = self._monotonic()
        self._start(now)
        self._offer()
        if self._done:
            return 0.0
        pauses = (self.queue.next_due(now), self._pace.pause(now, waiting=bool(self._finished) or self._asked is not None))
        return min((item for item in pauses if item is not None), default=None)

    # --- looking

    def _look(self, now: float) -> None:
        with self._changed:
            asked, self._asked = self._asked, None
        if self._pace.polls(now):
            self.revisions.refresh()
            self._publisher.retry()
        wanted = self._pace.begins(now, fetch=bool(asked))
        trouble = True
        try:
            self._complain.begin(all_anew=(fetched := self._looker.fetch(wanted=wanted)) is not None)
            if fetched is not None and fetched.error is not None:
                self._complain(fetched.error)
            if self.view is None:
                self.ledger.load(self._publisher.load())
                self.notifier.begin(self.ledger.documents)
                self.queue.keep(())
            elif fetched is not None and self._publisher.was_changed():
                self.ledger.dirty = True  # somebody wrote to the status branch: it is ours, so it says again what is so
            self.view = self._looker.look(self.ledger.documents, complain=self._complain)
            self._federations.look(self.view.commit, self._complain)
            trouble = bool(self.view.unreachable or (self.view.waiting and not self.revisions.in_flight))
        except FlopsError as error:
            if not self._pace.serving:
                raise
            self._complain(error)
        except Exception as bug:
            if not self._pace.serving:
                raise
            self._observer.tell("", "traceback", "".join(traceback.format_exception(bug)))
            self._complain(unexpected(bug))
        finally:
            delay = self.queue.delay(self._pace.bad_looks + 1) if trouble else None
            self._pace.ends(now, self._monotonic(), trouble=delay)
        if self.view is not None:
            self._take(self.view)

    def _take(self, view: View) -> None:
        """What a look means for the queue and for the documents; only for projects of which something changed."""
        finished, self._finished = self._finished, {}
        # A project may have gone while nobody looked; then only its document is left of it.
        for name in sorted(view.changed | finished.keys() | (self.ledger.documents.keys() - view.projects.keys())):
            item = view.projects.get(name)
            self._supersede(name, item)
            if item is None:
                self.queue.forget(name)
            elif item.plan.is_noop:
                self.queue.drop(name)
            else:
                self.queue.put(name, work_key(item))
            try:
                self._note(name, item, view, finished.get(name))
            except Exception as bug:  # one project's document that cannot be made; it is made anew
                self._observer.tell(name, "traceback", "".join(traceback.format_exception(bug)))
                self.ledger.forget(name)
        if self._guarded(view):
            error = nothing_declared()
            if not self._pace.serving:
                raise error
            self._complain(error)

    def _supersede(self, name: str, item: ProjectView | None) -> None:
        run = self._runs.get(name)
        if run is None or run.called_off.is_set():
            return
        if run.view.plan.change is Change.PRUNE or (run.view.desired is None and (item is None or item.desired is None)):
            return
        if reason := why_superseded(item, run.key):
            run.called_off.set()
            self._observer.tell(name, "superseded", f"called off: {reason}", digest=run.view.plan.run_digest)

    def _note(self, name: str, item: ProjectView | None, view: View, finished: Finished | None) -> None:
        """The document of a project after a look."""
        if item is None or (item.plan.change is Change.PRUNE and not item.observed.doomed):
            self.ledger.forget(name)
        elif name in self._runs:
            return  # it says that it is being worked on, and whether it is tried again
        elif not item.plan.is_noop and self.queue.fighting(name):
            self.ledger.fought_over(item)
        elif finished is not None:
            self.ledger.finished(item, work_key(item), finished)
        elif not item.plan.is_noop and (others := waits_for(item, view, self._runs)):
            self.ledger.waits(item, others)
        elif not self.queue.failures(name, work_key(item)):
            self.ledger.settled(item)

    # --- working

    def _start(self, now: float) -> None:
        view = self.view
        if view is None or self._stop.is_set() or self.leadership.lost or not self.queue.has_room:
            return
        guarded = self._guarded(view)
        for name in self.queue.due(now):
            item = view.projects.get(name)
            # For who is held a look follows as soon as its tracking server has answered.
            held = item is not None and item.customer in view.held and item.plan.change is not Change.PRUNE
            if item is None or held or (guarded and item.desired is None) or self._gave_up(item):
                continue
            if others := waits_for(item, view, self._runs):
                self.ledger.waits(item, others)
                continue
            self._begin(item, view.commit, now)
            if not self.queue.has_room:
                return

    def _begin(self, item: ProjectView, commit: str, now: float) -> None:
        run = self._runs[item.name] = Run(item, work_key(item), commit, now)
        self.queue.start(item.name)
        # While something is tried again its document says why; that it is tried again is no transition.
        again = self.queue.failures(item.name, run.key) or self.queue.fighting(item.name)
        if item.plan.change is not Change.PRUNE and not again:
            self.ledger.begun(item)
        self._pool.submit(self._work, run)

    def _work(self, run: Run) -> None:
        try:
            execution = self._execute(run.view, lambda: run.called_off.is_set() or self._stop.is_set() or self.leadership.lost)
        except Exception as error:  # an executor never raises; should it, its project says so and the loop goes on
            execution = Execution(Ending.STALLED, str(unexpected(error)), error=unexpected(error))
        with self._changed:
            self._done.append((run.view.name, execution))
            self._changed.notify_all()

    def _collect(self, now: float) -> None:
        """Take in what workers ended with."""
        while self._done:
            name, execution = self._done.popleft()
            run = self._runs.pop(name)
            if execution.ending is Ending.CANCELLED and run.called_off.is_set():
                execution = replace(execution, ending=Ending.SUPERSEDED)
            digest = run.view.plan.run_digest
            told = {"ending": str(execution.ending), "seconds": round(now - run.started, 3)}
            self._observer.tell(name, "ended", f"{execution.ending}: {execution.message}", digest=digest, data=told)
            if execution.ending is Ending.DONE:
                if self.queue.succeeded(name, run.key, now):
                    text = f"something undoes what is done again and again: {run.view.plan.reason}"
                    self._observer.tell(name, "fight", text, digest=digest)
            elif execution.ending is Ending.TRANSIENT:
                delay = self.queue.failed(name, run.key, now)
                self._observer.tell(name, "retry", f"tried again in {delay:.1f} s", digest=digest)
            else:
                self.queue.ended(name)
            self._looker.doubt(run.view.customer)
            self._executions[name] = execution
            self._finished[name] = Finished(run.view, run.key, run.commit, execution)
            self.ledger.remember(self._finished[name])

    def _gave_up(self, item: ProjectView) -> bool:
        return not self._pace.serving and self.queue.failures(item.name, work_key(item)) >= self._tries

    def _guarded(self, view: View) -> bool:
        return declares_nothing(view) and not self._engine.config.allow_empty

    # --- telling and resting

    def _offer(self) -> None:
        if (documents := self.ledger.take_dirty()) is not None:
            self._publisher.offer(documents)
        if self.view is not None:
            self.notifier.offer(self.ledger.documents, self.view.commit, changed=documents is not None)

    def _rest(self, seconds: float | None, *, draining: bool = False) -> None:
        with self._changed:
            ended = (self._stop.is_set() or self.leadership.lost) and not draining
            ready = self._done or ended or (self._asked is not None and not seconds)
            if not ready and (seconds is None or seconds > 0):
                self._wait(self._changed, seconds)

    def _idle(self) -> bool:
        """Whether nothing will change by itself: the end of `--once`."""
        view = self.view
        busy = self.revisions.in_flight + self._federations.in_flight
        if view is None or self._runs or self._done or self._finished or self._asked is not None or busy:
            return False
        if 0 < self._pace.bad_looks < self._tries:
            return False
        left = [view.projects[name] for name in self.queue.waiting() if name in view.projects]
        return all(self._gave_up(item) or waits_for(item, view, self._runs) for item in left)

    def _drain(self) -> None:
        """Wait for the workers, which were told to stop."""
        while self._runs:
            self._rest(0.2, draining=True)
            self._collect(self._monotonic())
        if not self.leadership.lost:
            self._offer()
            self.notifier.flush()

    def _end(self) -> None:
        self._drain()
        self._publisher.close()
        self.notifier.close()
        self._looker.close()
        for pool in {self._pool, self._asking}:
            pool.shutdown(wait=False, cancel_futures=True)
