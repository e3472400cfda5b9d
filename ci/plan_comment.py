"""The plan of a pull request as one comment that is kept up to date.

Run: `python -m ci.plan_comment --base REV --head REV [--pull NUMBER]`. Without a number it prints the comment. With one it
finds its own comment by a hidden mark and edits it, or writes it, through GitHub's command line (`gh`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

MARK = "<!-- flops-plan -->"
LIMIT = 60_000
"""GitHub refuses comments over 65,536 characters."""


def body(base: str, head: str) -> str:
    """The comment's text for two revisions of the repo here."""
    command = [sys.executable, "-m", "reconciler.cli", "plan", "--base", base, "--head", head, "--format", "markdown"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout.strip()
    if done.returncode not in {0, 1} and not text:
        text = f"### Plan\n\nThe plan could not be made:\n\n```\n{done.stderr.strip()[-2000:].replace('```', '')}\n```"
    if len(text) > LIMIT:
        text = text[:LIMIT] + "\n\n… and more; run `flops plan` for all of it."
    return f"{MARK}\n{text}\n"


def publish(text: str, pull: str) -> None:
    """Write or edit the one comment of a pull request."""
    listed = _gh("api", "--paginate", "--slurp", f"repos/{{owner}}/{{repo}}/issues/{pull}/comments")
    comments = [comment for page in json.loads(listed) for comment in page]
    mine = next((comment["id"] for comment in comments if comment["body"].startswith(MARK)), None)
    path = f"repos/{{owner}}/{{repo}}/issues/comments/{mine}" if mine else f"repos/{{owner}}/{{repo}}/issues/{pull}/comments"
    _gh("api", "--method", "PATCH" if mine else "POST", path, "--input", "-", stdin=json.dumps({"body": text}))


def main(arguments: list[str]) -> int:
    """Print or publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--head", default="HEAD")
    parser.add_argument("--pull", default="")
    options = parser.parse_args(arguments)
    text = body(options.base, options.head)
    if not options.pull:
        print(text)
        return 0
    if not options.pull.isdigit():
        parser.error("--pull is a number")
    publish(text, options.pull)
    return 0


def _gh(*arguments: str, stdin: str | None = None) -> str:
    return subprocess.run(["gh", *arguments], input=stdin, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
