"""`launch.plan`: the run that is planned, what is printed, and how it ends."""

from __future__ import annotations

import json

import pytest

from creason_jax.plan import topology
from tests.support.commands import here

pytestmark = pytest.mark.slow

SMOKE = ("--config=configs/smoke.py", "--config.learner.compute_dtype=bfloat16")
needs_libtpu = pytest.mark.skipif(not topology.installed(), reason="libtpu, the TPU compiler, is not installed")


@pytest.fixture
def plan(monkeypatch, capfd):
    return lambda *arguments: here("plan", *arguments, monkeypatch=monkeypatch, capfd=capfd)


@needs_libtpu
def test_a_run_that_fits(plan, tmp_path):
    file = tmp_path / "plan.json"
    ended = plan(*SMOKE, "--topology=v5e:2x2", f"--json={file}")
    assert ended.code == 0, ended
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["fits"] and found["chips"] == 4 and found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert [step["name"] for step in found["steps"]] == ["update", "scoring", "prefill", "decode", "publish"]
    assert [step["calls"] for step in found["steps"]] == [1, 1, 1, 3, 1]  # 24 tokens, 8 between two looks
    assert found["headroom"] == min(step["headroom"] for step in found["steps"]) > 15 * 2**30
    seconds = sum(step["seconds"] * step["calls"] for step in found["steps"])
    assert found["seconds_per_step"] == pytest.approx(seconds)
    assert found["hours"] == pytest.approx(6 * seconds / 3_600)
    assert found["tokens_per_second"] == pytest.approx(8 * (288 + 4 * 24) / seconds)
    assert 0 < found["mfu"] < 1
    lines = ended.out.splitlines()
    assert lines[0] == "v5e:2x2: 4 chips, data 1 x fsdp 4 x tensor 1; memory in GiB a chip"
    assert [line.split()[0] for line in lines[2:7]] == ["update", "scoring", "prefill", "decode", "publish"]
    assert any(line.startswith("at the roofline: ") for line in lines)
    [memory] = [line for line in lines if line.startswith("memory ")]
    words = ("weights", "gradients", "optimizer state", "reference", "KV cache", "temporaries", "free 15.8 GiB")
    assert "needed on each chip" in memory and all(word in memory for word in words)
    assert found["memory"]["optimizer_state"] == pytest.approx(2 * found["memory"]["gradients"], rel=1e-3)
    assert lines[-1] == f"fits: yes, {found['headroom'] / 2**30:.1f} GiB a chip to spare"


@needs_libtpu
def test_a_search_goes_through_slices_from_the_smallest(plan, tmp_path):
    file = tmp_path / "plan.json"
    ended = plan(*SMOKE, "--topology=v6e", "--search", f"--json={file}")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert ended.code == 0 and found["fits"] and found["topology"] == "v6e:2x4" and found["chips"] == 8


@needs_libtpu
def test_a_run_too_large_ends_with_one_and_says_what_would_help(plan, tmp_path):
    file = tmp_path / "plan.json"
    large = ("--config.model.path=models/phi-4", "--steps=publish", "--topology=v5e:2x2")
    ended = plan("--config=configs/phi4_sepsis.py", *large, f"--json={file}")
    assert ended.code == 1
    assert not json.loads(file.read_text(encoding="utf-8"))["fits"]
    assert "GiB a chip too much" in ended.out.splitlines()[-1] and "at the roofline" not in ended.out
    assert "what helps: a larger slice; jax.mesh_tensor = 2; jax.rollout_mesh_tensor = 4" in ended.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--topology=v5e:2x2",), "--config is needed"),
        (SMOKE, "--topology is needed"),
        ((*SMOKE, "--topology=v5e:2x2", "--steps=training"), "--steps=training: there are update, scoring, prefill"),
        ((*SMOKE, "--topology=v9:2x2"), "no figures for 'v9'"),
        ((*SMOKE, "--topology=v5e:2x2", "--model_config=missing.json"), "missing.json: no such file"),
    ],
    ids=str,
)
def test_a_wrong_question_is_refused(plan, arguments, message):
    assert message in plan(*arguments).refusal
