"""Files appear whole or not at all, and two writers never share a temporary one."""

import os
from pathlib import Path

import pytest

from data_prep import atomic


def test_writers_of_equal_process_id_on_two_nodes_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    here = os.uname()
    with atomic.replacing(path) as one:
        one.write_text("one")
        elsewhere = os.uname_result((here.sysname, "another-node", *here[2:]))
        monkeypatch.setattr(os, "uname", lambda: elsewhere)
        with atomic.replacing(path) as two:
            two.write_text("two")
        assert path.read_text() == "two" and one.read_text() == "one"
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]
