"""The command line: one function a command, no logic.

User mistakes end with one clear sentence and an exit code, never with a traceback. Exit codes: 0 done (for `plan`: nothing
to do), 1 not done or changes, 2 an error. Heavy imports stay inside the commands: `flops validate` starts in 0.2 s.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from reconciler.commands.options import Format, LogFormat, Output, PlanFormat
from reconciler.errors import FlopsError, SpecErrors
from reconciler.redaction import guard_output
from reconciler.refusals import named
from reconciler.terminal import open_console

app = typer.Typer(
    name="flops",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
registry_app = typer.Typer(no_args_is_help=True, help="The image store as a registry.")
app.add_typer(registry_app, name="registry")
console = open_console()
complain = Console(stderr=True)

Repo = Annotated[Path, typer.Option("--repo", envvar="FLOPS_REPO", help="The GitOps repo's clone.")]
State = Annotated[Path | None, typer.Option("--state", envvar="FLOPS_STATE", help="State directory; without it REPO/.flops.")]
Name = Annotated[str, typer.Argument(help="A project, as its folder under projects/ is called.")]
HERE = Path()


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"flops {version('flops-gitops')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")] = False,
) -> None:
    """GitOps for federated learning: what is merged is what is trained, registered and served."""


@app.command()
def validate(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files or folders; without any the whole GitOps repo.")] = None,
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
    head: Annotated[str, typer.Option(help="The revision to plan for; without it that of the tracked branch.")] = "",
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
        raise typer.BadParameter("say --once; the always-on controller is `flops serve`")
    raise typer.Exit(reconcile_once(repo, state, console, tries=tries, verbose=verbose))


@app.command()
def serve(
    listen: Annotated[str, typer.Option(help="HOST:PORT for webhooks, metrics and health; empty for none.")] = "",
    log: Annotated[LogFormat, typer.Option(help="How events are printed.")] = LogFormat.TEXT,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show build and data lines too.")] = False,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """Keep what runs as it is declared, until it is told to stop. Services stay up when it ends."""
    from reconciler.commands.serve import serve as serve_until_stopped

    raise typer.Exit(serve_until_stopped(repo, state, console, listen=listen, as_json=log is LogFormat.JSON, verbose=verbose))


@app.command()
def status(
    project: Annotated[str, typer.Argument(help="One project; without it all.")] = "",
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
    to: Annotated[str, typer.Option("--to", help="The revision to go back to; without it the one before the last change.")] = "",
    repo: Repo = HERE,
) -> None:
    """Make the commit that takes a project's folder back; push it and the old model is back."""
    from reconciler.source import GitRepo

    commit = GitRepo(repo).revert_commit(project, to or None)
    typer.echo(f"{commit[:12]} takes {project} back. Push it; no training is needed where the model is still registered.")


@app.command()
def predict(
    project: Name,
    data: Annotated[Path | None, typer.Option(help="JSON in MLflow's form, or -; without it one held-out sample.")] = None,
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
    customer: Annotated[str, typer.Argument(help="A customer; without it all that have projects.")] = "",
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """Start a customer's MLflow tracking server if needed, and print its address."""
    from reconciler.commands.inference import show_tracking

    show_tracking(repo, state, customer)


node_app = typer.Typer(help="This machine as a learner of a federation.", no_args_is_help=True)
data_app = typer.Typer(help="The datasets of this machine, as a node of a federation.", no_args_is_help=True)
app.add_typer(node_app, name="node")
app.add_typer(data_app, name="data")
NodeDir = Annotated[Path, typer.Option("--data", envvar="FLOPS_NODE_DATA", help="The node's own directory.")]
NODE_DIR, ASKED = Path("node"), "what the run asks for"


@node_app.command("keygen")
def node_keygen(
    file: Annotated[Path, typer.Argument(help="The private key's file; the public key goes beside it.")] = NODE_DIR / "node.key",
) -> None:
    """Make a key pair for a node."""
    from reconciler.commands.nodes import make_key

    make_key(file)


@node_app.command("join")
def node_join(
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the federation's SuperLink.")],
    tags: Annotated[str, typer.Option(help="Tags of data that may be trained with, by commas.")],
    data: NodeDir = NODE_DIR,
    cluster: Annotated[str, typer.Option(help="The cluster that this node thinks it is in.")] = "",
    root_certificates: Annotated[Path | None, typer.Option(help="The federation's authority.", show_default="the system's")] = None,
    key: Annotated[Path | None, typer.Option(help="The private key's file.", show_default="DATA/node.key")] = None,
    partition_id: Annotated[int, typer.Option(help="Number of this learner among those that share the data.")] = 0,
    num_partitions: Annotated[int, typer.Option(min=1, help="Learners that share the data.")] = 1,
    runtime: Annotated[Literal["process", "docker"], typer.Option(help="What learners are: containers, or processes.")] = "process",
    image: Annotated[str | None, typer.Option(help="Base image of the containers.", show_default="scratch")] = None,
    memory: Annotated[int | None, typer.Option(min=16, help="MB that a container may take.", show_default=ASKED)] = None,
    cpus: Annotated[float | None, typer.Option(min=0.01, help="CPUs that a container may take.", show_default=ASKED)] = None,
    docker_host: Annotated[str | None, typer.Option(help="The engine's socket.", show_default="DOCKER_HOST")] = None,
) -> None:
    """Take part in a federation until interrupted, through every loss of the connection."""
    from reconciler.commands.nodes import containers_of, join

    containers = containers_of(runtime, image=image, memory_mb=memory, cpus=cpus, docker_host=docker_host)
    join(
        superlink=superlink, data=data, tags=tags, cluster=cluster, root_certificates=root_certificates, key=key,
        partition=(partition_id, num_partitions), containers=containers,
    )  # fmt: skip


@app.command()
def nodes(
    federation: Annotated[str, typer.Argument(help="A federation of flops.yaml; without it all.")] = "",
    certificate: Annotated[bool, typer.Option("--certificate", help="Print what nodes need for --root-certificates.")] = False,
    output: Annotated[Output, typer.Option("-o", "--output")] = Output.TEXT,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """The machines that may be learners: connected, tags, cluster, rows of the last run, last seen; and who was refused."""
    from reconciler.commands.nodes import show_nodes

    show_nodes(repo, state, console, federation, as_json=output is Output.JSON, certificate=certificate)


@data_app.command("add")
def data_add(
    source: Annotated[Path, typer.Argument(help="A Parquet, Arrow or CSV file, or a directory of them.")],
    tags: Annotated[str, typer.Option(help="Tags, by commas.")],
    name: Annotated[str, typer.Option(help="The dataset's name; without it that of the file.")] = "",
    test_fraction: Annotated[float, typer.Option(help="Share of the rows that no training sees.")] = 0.0,
    data: NodeDir = NODE_DIR,
) -> None:
    """Take a dataset into this node's catalogue; one of the same name is replaced."""
    from reconciler.commands.nodes import add_data

    add_data(data, source, name, tags, test_fraction)


@data_app.command("list")
def data_list(data: NodeDir = NODE_DIR, output: Annotated[Output, typer.Option("-o", "--output")] = Output.TEXT) -> None:
    """The datasets of this node. Nothing of it is told to anybody."""
    from reconciler.commands.nodes import list_data

    list_data(data, console, as_json=output is Output.JSON)


@data_app.command("remove")
def data_remove(name: Annotated[str, typer.Argument(help="A dataset.")], data: NodeDir = NODE_DIR) -> None:
    """Take a dataset and its rows out."""
    from reconciler.commands.nodes import remove_data

    remove_data(data, name)


@app.command()
def images(
    project: Annotated[str, typer.Argument(help="A part of their names; without it all.")] = "",
    pin: Annotated[list[str] | None, typer.Option("--pin", metavar="IMAGE", help="Never collect this image.")] = None,
    unpin: Annotated[list[str] | None, typer.Option("--unpin", metavar="IMAGE", help="Collect it like others again.")] = None,
    output: Annotated[Output, typer.Option("-o", "--output")] = Output.TEXT,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """The images of the embedded store: platforms, sizes, what runs and what is pinned."""
    from reconciler.commands.images import pin_images, show_images

    pin_images(repo, state, console, pin or [], pinned=True)
    pin_images(repo, state, console, unpin or [], pinned=False)
    if not pin and not unpin:
        raise typer.Exit(show_images(repo, state, console, project, as_json=output is Output.JSON))


@app.command()
def gc(
    keep: Annotated[int, typer.Option(min=1, help="Digests that each project keeps, the newest first.")] = 3,
    grace: Annotated[float, typer.Option(min=0, help="Keep what was written or used in the last so many minutes.")] = 60,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    output: Annotated[Output, typer.Option("-o", "--output")] = Output.TEXT,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """Remove images and layers that nobody needs; what runs and what is pinned stays."""
    from reconciler.commands.images import collect_images

    raise typer.Exit(
        collect_images(repo, state, console, keep_last=keep, grace=grace * 60, dry_run=dry_run, as_json=output is Output.JSON)
    )


@registry_app.command("serve")
def registry_serve(
    host: Annotated[str, typer.Option(help="Where to listen; off this machine only when it is said here.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 5000,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """Offer the image store to `docker pull`, skopeo and others; nothing can be pushed to it."""
    from reconciler.commands.images import serve_registry

    serve_registry(repo, state, console, host=host, port=port)


@app.command()
def doctor(
    output: Annotated[Output, typer.Option("-o", "--output")] = Output.TEXT,
    repo: Repo = HERE,
    state: State = None,
) -> None:
    """Check what the reconciler needs: Git, remote, disk, journal, tracking, engine, sandbox. Exit code 1 when something fails."""
    from reconciler.commands.doctor import examine

    raise typer.Exit(examine(repo, state, console, as_json=output is Output.JSON))


@app.command()
def stop(repo: Repo = HERE, state: State = None) -> None:
    """Stop every service of a state directory and remove its containers; models, runs and status stay."""
    from reconciler.commands.stop import stop_all

    stop_all(repo, state, console)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where to make it.")],
    customer: Annotated[str, typer.Option(help="customerID of the example projects.")] = "demo",
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    project: Annotated[
        list[str] | None,
        typer.Option(help="An example, such as digits-pytorch; may be repeated. Without it the two of MNIST."),
    ] = None,
) -> None:
    """Make a fresh GitOps repo with example projects, schemas and workflows."""
    from reconciler.scaffold import FIRST, init_repository

    for path in init_repository(directory, customer=customer, force=force, projects=project or FIRST):
        typer.echo(path)


def main() -> None:
    """Entry point of `flops`: errors become one sentence and exit code 2, and nothing is printed with a secret in it."""
    guard_output()
    try:
        app()
    except (FlopsError, SpecErrors, OSError) as error:
        told = named(error) if isinstance(error, OSError) else error
        if told is None:
            raise
        complain.print(str(told), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
