"""A tracking server whose disk is full: said as such, the run is not half there, and it is recorded when there is space."""

from __future__ import annotations

import pytest

from reconciler.errors import TrackingError
from reconciler.tracking import Tracking
from tests.conftest import SmallDisk
from tests.tracking.conftest import RecordMaker, start_server, stop_server


def test_a_run_is_recorded_when_there_is_space_again(record: RecordMaker, small_disk: SmallDisk) -> None:
    server = start_server("full", small_disk.path)
    try:
        tracking = Tracking(server.uri)
        wanted = record()
        small_disk.leave(0)
        with pytest.raises(TrackingError) as raised:
            tracking.record_run(wanted)
        assert raised.value.transient
        assert raised.value.code in {"FL6004", "FL6005"}  # the server says why, or is cut off before it can
        small_disk.free()
        run_id = tracking.record_run(wanted)
        assert tracking.record_run(wanted) == run_id
    finally:
        stop_server(server)
