"""The two backends behind their small face are asked the same."""

from __future__ import annotations

import pytest

from parity import sides


@pytest.mark.parametrize("side", sides.Subject().sides, ids=lambda side: side.name)
def test_both_engines_end_at_the_end_token_of_the_families(side, model, monkeypatch):
    monkeypatch.setattr(sides, "EOS", 17)
    sides.zero.start_processes()
    engine = side.engine(sides.run_config(), model)
    assert tuple(engine.stop_tokens) == (17,)
