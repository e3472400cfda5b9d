"""The plan of a pull request as one comment that is kept up to date.

Run: `python ci/plan_comment.py --base REV [--head REV] [--pull NUMBER]`. Without a number it prints the comment. With one it
finds its own comment by a hidden mark and edits it, or writes it, through GitHub's command line (`gh`). A pull request from a
fork may not be commented on: the plan then goes to the job's summary. Exit code 1 when the plan could not be made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

MARK = "<!-- flops-plan -->"
ISSUES = "repos/{owner}/{repo}/issues"
"""`gh` fills in the braces from the clone that it runs in."""
LIMIT = 60_000
"""GitHub refuses comments over 65,536 characters."""


def body(base: str, head: str) -> tuple[str, bool]:
    """The comment's text for two revisions of the repo here, and whether the plan could be made."""
    command = [_flops(), "plan", "--base", base, "--head", head, "--format", "markdown"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    made = done.returncode in {0, 1}
    text = done.stdout.strip()
    if not text:
        text = f"### Plan\n\nThe plan could not be made:\n\n```\n{done.stderr.strip()[-2000:].replace('```', '')}\n```"
        made = False
    if len(text) > LIMIT:
        text = text[:LIMIT] + "\n\n… and more; run `flops plan` for all of it."
    return f"{MARK}\n{text}\n", made


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--head", default="HEAD")
    parser.add_argument("--pull", default="")
    options = parser.parse_args(arguments)
    if options.pull and not options.pull.isdigit():
        parser.error("--pull is a number")
    text, made = body(options.base, options.head)
    if not options.pull:
        print(text)
        return 0 if made else 1
    try:
        publish(text, options.pull)
    except subprocess.CalledProcessError as error:
        print(f"The comment could not be written: {error.stderr.strip()}", file=sys.stderr)
        print(text)
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary:
            with Path(summary).open("a") as file:
                file.write(text)
    return 0 if made else 1


def _flops() -> str:
    """The command beside this interpreter, else the one on the PATH."""
    beside = Path(sys.executable).with_name("flops")
    return str(beside) if beside.is_file() else "flops"


def _gh(*arguments: str, stdin: str | None = None) -> str:
    return subprocess.run(["gh", *arguments], input=stdin, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
