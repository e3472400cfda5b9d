"""File events: a commit on this machine is seen at once – in the clone itself, or in a remote that is a folder of this machine.

Only the refs are watched. Where events cannot be had (a network file system, no watches left) the poll still sees everything.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

# Git writes a ref to NAME.lock and renames it; packed refs stand beside.
_QUIET = frozenset({"opened", "closed_no_write"})


class RefWatch:
    """Calls `changed` when a branch moves, until it is closed; `error` says why it cannot watch."""

    def __init__(self, folders: list[Path], branch: str, changed: Callable[[], None]) -> None:
        self.error = ""
        self._observer = Observer()
        handler = _Handler(branch, changed)
        try:
            for folder in folders:
                # Branches may come and go as files in folders; packed-refs is a file of the folder itself.
                self._observer.schedule(handler, str(folder), recursive=False)
                self._observer.schedule(handler, str(folder / "refs" / "heads"), recursive=True)
            self._observer.start()
        except OSError as error:
            self.error = str(error)

    def close(self) -> None:
        """Stop watching."""
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()


class _Handler(FileSystemEventHandler):
    def __init__(self, branch: str, changed: Callable[[], None]) -> None:
        self._branch, self._changed = branch, changed

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in _QUIET or event.is_directory:
            return
        paths = [str(path) for path in (event.src_path, event.dest_path) if path]
        if any(path.endswith((f"/refs/heads/{self._branch}", "/packed-refs")) for path in paths):
            self._changed()


def folders_to_watch(git_dir: Path, remote_url: str) -> list[Path]:
    """Git folders of this machine whose branches declare: the remote's where there is one, else the clone's own."""
    if not remote_url:
        return [git_dir]
    url = urlsplit(remote_url)
    if url.scheme not in ("", "file") or (not url.scheme and ":" in remote_url.split("/")[0]):
        return []
    path = Path(unquote(url.path) if url.scheme else remote_url)
    if not path.is_absolute():
        path = git_dir.parent / path
    found = path / ".git" if (path / ".git").is_dir() else path
    return [found] if (found / "refs" / "heads").is_dir() else []
