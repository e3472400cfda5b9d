"""The plan of a pull request as one comment that is kept up to date.

Run: `python ci/plan_comment.py --base REV [--head REV]` prints it, and in a workflow also writes it to the job's summary and to
its output `plan`. `… | python ci/plan_comment.py --publish NUMBER` finds the pull request's own comment by a hidden mark and
edits it, or writes it, through GitHub's command line (`gh`). They are two jobs: what makes the plan runs the pull request's code
and has no rights, what has the right to comment runs this file of the base branch. Exit code 1 when the plan could not be made,
or not be written.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

MARK = "<!-- flops-plan -->"
ISSUES = "repos/{owner}/{repo}/issues"
"""`gh` fills in the braces from the clone that it runs in."""
LIMIT = 60_000
"""Bytes: GitHub refuses comments over 65,536 characters, and Linux environment variables over 128 KiB."""
MORE = "\n\n… and more; run `flops plan` for all of it.\n"


def body(base: str, head: str) -> tuple[str, bool]:
    """The comment's text for two revisions of the repo here, and whether the plan could be made."""
    command = [_flops(), "plan", "--base", base, "--head", head, "--format", "markdown"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    made = done.returncode in {0, 1}
    text = done.stdout.strip()
    if not text:
        text = f"### Plan\n\nThe plan could not be made:\n\n```\n{done.stderr.strip()[-2000:].replace('```', '')}\n```"
        made = False
    return marked(text), made


def marked(text: str) -> str:
    """A text as our comment: with the mark that it is found by, and no longer than GitHub takes it."""
    text = f"{MARK}\n{text.removeprefix(MARK).strip()}\n"
    if len(text.encode()) > LIMIT:
        text = text.encode()[:LIMIT].decode(errors="ignore") + MORE
    return text


def publish(text: str, pull: str) -> None:
    """Write or edit the one comment of a pull request. Raises CalledProcessError where that is not allowed."""
    listed = _gh("api", "--paginate", "--slurp", f"{ISSUES}/{pull}/comments")
    comments = [comment for page in json.loads(listed) for comment in page]
    # In a workflow only a bot's comment is ours: anybody can write the mark.
    ours = [comment for comment in comments if comment["body"].startswith(MARK)]
    if "GITHUB_ACTIONS" in os.environ:
        ours = [comment for comment in ours if comment["user"]["type"] == "Bot"]
    target = f"comments/{ours[0]['id']}" if ours else f"{pull}/comments"
    _gh("api", "--method", "PATCH" if ours else "POST", f"{ISSUES}/{target}", "--input", "-", stdin=json.dumps({"body": text}))


def main(arguments: list[str]) -> int:
    """Print or publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--base", help="the revision that the plan starts from")
    what.add_argument("--publish", metavar="NUMBER", help="the pull request that gets what comes through standard input")
    parser.add_argument("--head", default="HEAD")
    options = parser.parse_args(arguments)
    if options.publish is None:
        text, made = body(options.base, options.head)
        print(text)
        _tell_workflow(text)
        return 0 if made else 1
    if not options.publish.isdecimal():
        parser.error("--publish takes a number")
    text = sys.stdin.read()
    if not text.strip():
        print("There is no plan to publish: the job that makes it did not come so far.", file=sys.stderr)
        return 1
    try:
        publish(marked(text), options.publish)
    except subprocess.CalledProcessError as error:
        print(f"The comment could not be written: {error.stderr.strip()}", file=sys.stderr)
        return 1
    return 0


def _tell_workflow(text: str) -> None:
    """The plan for the job's page, and for the job that comments."""
    summary, output = os.environ.get("GITHUB_STEP_SUMMARY"), os.environ.get("GITHUB_OUTPUT")
    if summary:
        with Path(summary).open("a") as file:
            file.write(text)
    if output:
        # The text is a pull request's: an end that it could write itself would let it set other outputs.
        end = secrets.token_hex(16)
        with Path(output).open("a") as file:
            file.write(f"plan<<{end}\n{text}{end}\n")


def _flops() -> str:
    """The command beside this interpreter, else the one on the PATH."""
    beside = Path(sys.executable).with_name("flops")
    return str(beside) if beside.is_file() else "flops"


def _gh(*arguments: str, stdin: str | None = None) -> str:
    return subprocess.run(["gh", *arguments], input=stdin, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
