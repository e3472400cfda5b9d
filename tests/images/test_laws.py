"""Whatever others write into names, configurations, locks and keys: it is understood, or refused with a code."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.errors import ImageError
from reconciler.images.credentials import DockerConfig
from reconciler.images.model import Descriptor
from reconciler.images.reference import Reference, is_loopback, repository_name, split_name
from reconciler.images.sbom import pinned
from reconciler.images.signing import Signer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
NAMES = st.text(alphabet=st.sampled_from("ab.-_/:@[]09AZé \n"), max_size=60)


@contextmanager
def refused(*codes: str) -> Iterator[None]:
    """What is inside succeeds, or is refused with one of these codes."""
    try:
        yield
    except ImageError as error:
        if error.code not in codes:
            raise


@given(NAMES)
def test_a_reference_is_one_that_reads_the_same_again(text: str) -> None:
    with refused("FL6140", "FL6102"):
        found = Reference.parse(text)
        assert Reference.parse(str(found)) == found
        assert found.url.startswith("http://") == is_loopback(found.host)
        assert ".." not in found.repository.split("/")


@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
def test_different_parts_are_different_repositories(one: list[str], other: list[str]) -> None:
    assert (repository_name(*one) == repository_name(*other)) == (one == other)
    made = Reference.parse(f"registry.example.invalid/{repository_name(*one)}:1")
    assert split_name(f"{made.repository}:1") == (made.repository, "1")


@given(JSON)
def test_a_descriptor_of_anything(content: object) -> None:
    with refused("FL6102", "FL6103"):
        assert Descriptor.from_dict(content).digest.startswith("sha256:")


@given(JSON)
@settings(max_examples=50)
def test_a_docker_config_of_anything(content: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps({"auths": {"registry.example.invalid": content}}))
        with refused("FL6141"):
            DockerConfig(path).login("registry.example.invalid")


@given(st.text())
def test_a_lock_of_anything(text: str) -> None:
    with refused("FL6163"):
        found = pinned(text)
        assert found == sorted(set(found))


@given(st.binary())
def test_a_key_of_anything(pem: bytes) -> None:
    with refused("FL6160", "FL6161"):
        Signer(pem)
