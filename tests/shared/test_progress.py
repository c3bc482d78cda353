"""The bar of a run's steps: what the first one takes says nothing of the others."""

from __future__ import annotations

import pytest

from shared.training.progress import StepBar


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [100.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


@pytest.mark.parametrize("initial", [0, 4])
def test_time_left_is_not_estimated_from_the_step_that_compiles(initial, clock, capsys):
    with StepBar(total=10, initial=initial, description="GRPO", shown=True) as bar:
        clock[0] += 600
        bar.refresh()
        told = capsys.readouterr().err.split("\r")[-1]
        assert "compiling" in told and "10:00" in told and "?" not in told and "step" not in told
        bar.update()
        told = capsys.readouterr().err.split("\r")[-1]
        assert "compiling" not in told and f"{initial + 1}/10" in told and "?step/s" in told
        clock[0] += 2
        bar.update()
        told = capsys.readouterr().err.split("\r")[-1]
        assert f"{initial + 2}/10 [00:02<00:{2 * (8 - initial):02d},  2.00s/step" in told
    assert bar.n == initial + 2


def test_where_it_is_not_shown_nothing_is_written(capsys):
    with StepBar(total=2, description="GRPO", shown=False) as bar:
        bar.update()
        bar.update()
    assert capsys.readouterr().err == ""
