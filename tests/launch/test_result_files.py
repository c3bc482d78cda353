"""What becomes of a file that stands where a program writes its one result."""

from __future__ import annotations

import pytest

from launch import app
from shared.errors import InputError
from shared.storage import files


def test_only_what_the_same_program_wrote_is_replaced(tmp_path):
    path = tmp_path / "plan.json"
    is_plan = files.holds("fits")
    assert app.check_result("json", path, is_plan) == ""
    files.write_json(path, {"fits": True})
    assert app.check_result("json", path, is_plan) == " (replaced)"
    for content in ('{"other": 1}', "[]", "patient,age\n1,50\n"):
        path.write_text(content)
        with pytest.raises(InputError, match="exists, and is not an earlier result"):
            app.check_result("json", path, is_plan)
    with pytest.raises(InputError, match="is a directory"):
        app.check_result("json", tmp_path, is_plan)
    with pytest.raises(InputError, match="is a file; give a directory"):
        app.check_result("json", path / "below.json", is_plan)


def test_a_picture_is_known_by_its_first_bytes(tmp_path):
    path = tmp_path / "runs.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n...")
    assert files.begins_as_png(path)
    path.write_text("id,answer\n")
    assert not files.begins_as_png(path)
