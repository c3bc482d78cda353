"""What is compared after a publish, and what is said where engine and learner are apart."""

from __future__ import annotations

import pytest

from creason_torch.rollout import vllm_names
from shared.backend import Probe
from shared.errors import SyncError
from shared.training import published

SIZES = {f"layer.{index}": 40 for index in range(6)} | {"norm": 1}


class Learner:
    step = 7

    def __init__(self):
        self.asked: list[list[Probe]] = []

    def publish(self, engine):
        engine.version = self.step

    def digests(self, probes):
        self.asked.append(list(probes))
        return [f"{probe}" for probe in probes]


class Engine:
    version = None
    whole_tensors = False

    def __init__(self, wrong=(), sizes=SIZES):
        self.wrong, self.sizes = wrong, sizes

    def readable(self):
        return self.sizes

    def digests(self, probes):
        return ["other" if probe.name in self.wrong else f"{probe}" for probe in probes]


def test_a_right_engine_passes_and_few_rows_are_read():
    learner = Learner()
    published.publish(learner, Engine())
    [probes] = learner.asked
    assert len(probes) == published.TENSORS
    assert all(len(probe.rows) == min(published.ROWS, SIZES[probe.name]) for probe in probes)


def test_every_row_of_every_tensor_gets_its_turn():
    seen: dict[str, set[int]] = {name: set() for name in SIZES}
    for step in range(200):
        for probe in published.probes_of(SIZES, step, whole=False):
            assert len(set(probe.rows)) == len(probe.rows)
            seen[probe.name] |= set(probe.rows)
    assert seen == {name: set(range(size)) for name, size in SIZES.items()}
    assert {probe.rows for probe in published.probes_of(SIZES, 3, whole=True)} == {None}


def test_a_tensor_that_differs_is_named():
    with pytest.raises(
        SyncError, match=r"^step 7: the engine's layer\.\d.* not the learner's.*another model's"
    ) as caught:
        published.publish(Learner(), Engine(wrong=SIZES))
    assert "\n" not in str(caught.value)


def test_an_engine_of_another_step_is_refused_before_anything_is_read():
    class Skipped(Learner):
        def publish(self, engine):
            engine.version = 6

    learner = Skipped()
    with pytest.raises(SyncError, match="the engine holds the weights of step 6, the learner those of step 7"):
        published.publish(learner, Engine())
    assert learner.asked == []


def test_nothing_to_read_back_is_no_proof():
    with pytest.raises(SyncError, match="nobody knows what it holds"):
        published.publish(Learner(), Engine(sizes={}))


def test_what_another_process_saw_ends_this_one():
    with pytest.raises(SyncError, match="in another process the engine holds other weights"):
        published.publish(Learner(), Engine(), any_process=lambda wrong: True)


def test_vllm_fused_matrices_are_taken_apart():
    known = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"] + ["model.norm.weight"]
    assert vllm_names.unfused("model.layers.0.self_attn.qkv_proj.weight", known) == tuple(known[:3])
    assert vllm_names.unfused("model.layers.0.self_attn.o_proj.weight", known) == (known[3],)
    assert vllm_names.unfused("model.layers.0.mlp.gate_up_proj.weight", known) == ()
    assert vllm_names.unfused("model.norm.weight", known) == ("model.norm.weight",)


def test_of_a_servers_digests_only_those_of_whole_tensors_count():
    shapes = {"model.embed_tokens.weight": (320, 8), "model.norm.weight": (8,), "a.o_proj.weight": (8, 8),
              "a.q_proj.bias": (8,), "a.packed.weight": (8, 8)}  # fmt: skip
    one = {f"dp0:pp0:pcp0:tp0:{name}": name for name in shapes} | {"dp0:pp0:pcp0:tp0:a.qkv_proj.weight": "x"}
    one["dp0:pp0:pcp0:tp0:a.packed.weight"] = vllm_names.EMPTY
    found = vllm_names.whole_digests([one], shapes)
    assert found == {name: name for name in ("model.embed_tokens.weight", "model.norm.weight", "a.o_proj.weight")}
    assert "model.embed_tokens.weight" not in vllm_names.whole_digests(
        [one], shapes | {"model.embed_tokens.weight": (321, 8)}
    )
    other = {name.replace("tp0", "tp1"): digest for name, digest in one.items()}
    assert vllm_names.whole_digests([one, other], shapes) == {"model.norm.weight": "model.norm.weight"}
    other["dp0:pp0:pcp0:tp1:model.norm.weight"] = "stale"
    assert "stale" in vllm_names.whole_digests([one, other], shapes)["model.norm.weight"]
