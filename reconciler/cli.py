"""The command line: one function a command, no logic.

User mistakes end with one clear sentence and an exit code, never with a traceback. Exit codes: 0 done (for `plan`: nothing
to do), 1 not done or changes, 2 an error. Heavy imports stay inside the commands: `flops validate` starts in 0.2 s.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from reconciler.errors import FlopsError, SpecErrors

app = typer.Typer(
    name="flops",
    help="GitOps for federated learning: what is merged is what is trained, registered and served.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
console = Console()
complain = Console(stderr=True)

Repo = Annotated[Path, typer.Option("--repo", envvar="FLOPS_REPO", help="The GitOps repo's clone.")]
State = Annotated[Path | None, typer.Option("--state", envvar="FLOPS_STATE", help="State directory [REPO/.flops].")]
Name = Annotated[str, typer.Argument(help="A project, as its folder under projects/ is called.")]
HERE = Path()


class Format(StrEnum):
    """Output of `flops validate`."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


class PlanFormat(StrEnum):
    """Output of `flops plan`."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


class Output(StrEnum):
    """Output of the commands that show something."""

    TEXT = "text"
    JSON = "json"


@app.command()
def validate(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files or folders [the whole GitOps repo].")] = None,
    format: Annotated[Format, typer.Option(help="How errors are shown.")] = Format.TEXT,
    repo: Repo = HERE,
) -> None:
    """Check SLAs, mock data and flops.yaml."""
    from reconciler.spec.validate import format_errors, validate_paths

    errors, checked = validate_paths(paths or [], root=repo)
    typer.echo(format_errors(errors, str(format), checked=checked))
    raise typer.Exit(1 if errors else 0)


@app.command()
def plan(
    base: Annotated[str, typer.Option(help="Compare with this revision instead of what is there.")] = "",
    head: Annotated[str, typer.Option(help="The revision to plan for [the tracked branch].")] = "",
    format: Annotated[PlanFormat, typer.Option(help="How the plan is shown.")] = PlanFormat.TEXT,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """Say what would run, what is reused, and why. Exit code 0: nothing, 1: changes, 2: an error."""
    from reconciler.commands.plan import show_plan

    raise typer.Exit(show_plan(repo, state, base, head, str(format)))


@app.command()
def reconcile(
    once: Annotated[bool, typer.Option("--once", help="One cycle to convergence, then end.")] = False,
    tries: Annotated[int, typer.Option(min=1, help="Cycles at most, while something has to be tried again.")] = 6,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show build and data lines too.")] = False,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """Do what is missing until what runs is what is declared. Services stay up when it ends."""
    from reconciler.commands.reconcile import reconcile_once

    if not once:
        raise typer.BadParameter("say --once; the always-on controller is `flops serve`, which is not built yet")
    raise typer.Exit(reconcile_once(repo, state, console, tries=tries, verbose=verbose))


@app.command()
def status(
    project: Annotated[str, typer.Argument(help="One project [all].")] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again whenever it changes.")] = False,
    output: Annotated[Output, typer.Option("-o", "--output")] = Output.TEXT,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """What is declared, what runs, and whether they match."""
    from reconciler.commands.status import show_status

    raise typer.Exit(show_status(repo, state, console, project, as_json=output is Output.JSON, watch=watch))


@app.command()
def logs(
    project: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as events come.")] = False,
    service: Annotated[bool, typer.Option("--service", help="The inference server's own log.")] = False,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """A project's observer: all that happened, oldest first."""
    from reconciler.commands.status import show_logs

    show_logs(repo, state, console, project, follow=follow, service=service)


@app.command()
def history(
    project: Name,
    output: Annotated[Output, typer.Option("-o", "--output")] = Output.TEXT,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """Every digest that a project had, and what its stages did and took."""
    from reconciler.commands.status import show_history

    show_history(repo, state, console, project, as_json=output is Output.JSON)


@app.command()
def rollback(
    project: Name,
    to: Annotated[str, typer.Option("--to", help="The revision to go back to [before the last change].")] = "",
    repo: Repo = HERE,
) -> None:
    """Make the commit that takes a project's folder back; push it and the old model is back."""
    from reconciler.source import GitRepo

    commit = GitRepo(repo).revert_commit(project, to or None)
    typer.echo(f"{commit[:12]} takes {project} back. Push it; no training is needed where the model is still registered.")


@app.command()
def predict(
    project: Name,
    data: Annotated[Path | None, typer.Option(help="JSON in MLflow's form, or - [one held-out sample].")] = None,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """Ask a project's model."""
    from reconciler.commands.inference import show_prediction

    show_prediction(repo, state, project, data)


@app.command("test-inference")
def test_inference(
    project: Name,
    loop: Annotated[bool, typer.Option("--loop", help="Go on until interrupted.")] = False,
    output: Annotated[Output, typer.Option("-o", "--output")] = Output.TEXT,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """Send held-out samples to a project's service and compare with the model's own answers."""
    from reconciler.commands.inference import test_service

    raise typer.Exit(test_service(repo, state, console, project, loop=loop, as_json=output is Output.JSON))


@app.command()
def tracking(
    customer: Annotated[str, typer.Argument(help="A customer [all that have projects].")] = "",
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """Start a customer's MLflow tracking server if needed, and print its address."""
    from reconciler.commands.inference import show_tracking

    show_tracking(repo, state, customer)


@app.command()
def stop(repo: Repo = HERE, state: State = None) -> None:
    """Stop every service of a state directory; models, runs and status stay."""
    from reconciler.engine import open_engine

    runtime = open_engine(repo, state).runtime
    for service in runtime.observe():
        runtime.remove(service.name)
        typer.echo(f"stopped {service.name}")


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where to make it.")],
    customer: Annotated[str, typer.Option(help="customerID of the example projects.")] = "demo",
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    project: Annotated[
        list[str] | None,
        typer.Option(help="An example: mnist-classic (the default), digits-pytorch, digits-keras; may be repeated."),
    ] = None,
) -> None:
    """Make a fresh GitOps repo with example projects, schemas and workflows."""
    from reconciler.scaffold import FIRST, init_repository

    for path in init_repository(directory, customer=customer, force=force, projects=project or (FIRST,)):
        typer.echo(path)


def main() -> None:
    """Entry point of `flops`: errors become one sentence and exit code 2."""
    try:
        app()
    except (FlopsError, SpecErrors) as error:
        complain.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
