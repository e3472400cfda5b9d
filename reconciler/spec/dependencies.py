"""Which project comes after which: names that do not exist, and circles. Pure, so that loop and `flops validate` share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def missing(depends: Mapping[str, Sequence[str]], known: Iterable[str]) -> list[tuple[str, int, str]]:
    """(project, index in its `depends_on`, name) for every name that is no project."""
    names = set(known)
    return [
        (project, index, name)
        for project, needed in sorted(depends.items())
        for index, name in enumerate(needed)
        if name not in names
    ]


def circles(depends: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Circles such as ("a", "b", "a"): at least one through every group of projects that wait for each other.

    Each begins with its smallest name, so the same circle is always told in the same way. Linear in projects and dependencies;
    no recursion, because a chain may be longer than Python's stack.
    """
    found: set[tuple[str, ...]] = set()
    done: set[str] = set()
    for start in sorted(depends):
        path: list[str] = []
        position: dict[str, int] = {}
        todo: list[tuple[str, bool]] = [(start, True)]
        while todo:
            name, entering = todo.pop()
            if not entering:
                position.pop(path.pop())
                done.add(name)
            elif name in position:
                found.add(_from_smallest(path[position[name] :]))
            elif name not in done:
                position[name] = len(path)
                path.append(name)
                todo.append((name, False))
                todo += [(other, True) for other in reversed(depends.get(name, ()))]
    return sorted(found)


def _from_smallest(circle: list[str]) -> tuple[str, ...]:
    first = circle.index(min(circle))
    turned = circle[first:] + circle[:first]
    return (*turned, turned[0])
