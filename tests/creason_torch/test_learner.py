from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Phi3ForCausalLM

from creason_torch import zero
from creason_torch.backend import Backend
from creason_torch.learner import loss
from creason_torch.learner.learner import Learner
from creason_torch.model.decoder import read_config
from shared import grpo
from shared.config import OptimizerConfig
from shared.errors import InputError
from shared.grpo.schedule import learning_rate
from tests.support.groups import LAYOUT, OPTIMIZER, VOCABULARY, random_batch
from tests.support.tiny import hugging_face_logprobs, run_config
from tests.support.workers import Found, distance, run_workers

pytestmark = pytest.mark.slow

ROWS, STEPS = 8, 12
STAGES, PROCESSES, MICRO = (0, 1, 2, 3), (1, 2), (8, 2)  # micro-batches of 8 rows: no accumulation; of 2: four or two
STATE = ("params", "exp_avg", "exp_avg_sq", "reference")
CLIP = {"max_grad_norm": 2.0}  # some of the updates are clipped, some are not


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"learner": {"remat": "dots"}},
            "learner.remat = 'dots': only the JAX backend does that; set 'none' or 'layer'",
        ),
        (
            {"learner": {"remat": "offload"}},
            "learner.remat = 'offload': only the JAX backend does that; set 'none' or 'layer'",
        ),
        (
            {"jax": {"moments_dtype": "bfloat16"}},
            "jax.moments_dtype = 'bfloat16': only the JAX backend does that; set 'float32'",
        ),
        (
            {"jax": {"reference_memory": "host"}},
            "jax.reference_memory = 'host': only the JAX backend does that; set 'device'",
        ),
    ],
)
def test_what_only_the_jax_backend_does_is_refused(options, message, tmp_path):
    """Before a process starts or a file is read."""
    config = run_config(**options)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Backend(config)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Learner(config, tmp_path, torch.device("cpu"), optimizer=config.optimizer, steps=1, reference=True)


@pytest.fixture(scope="module")
def plain(model):
    """The same updates by `torch.optim.AdamW`, without DeepSpeed: metrics and weights."""
    config = run_config(optimizer=OPTIMIZER | CLIP)
    network = Phi3ForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    settings = config.optimizer
    adam = torch.optim.AdamW(
        network.parameters(), betas=(settings.b1, settings.b2), eps=settings.eps, weight_decay=settings.weight_decay
    )
    metrics = []
    for step in range(STEPS):
        batch = random_batch(ROWS, seed=step)
        view = {
            name: torch.from_numpy(grpo.completion_view(getattr(batch, name), LAYOUT).copy())
            for name in ("advantages", "ref_logprobs", "rollout_logprobs")
        }
        mask = torch.from_numpy(grpo.completion_view(batch.completion_mask, LAYOUT).copy())
        sums = loss.objective(
            hugging_face_logprobs(network, grpo.separate_rows(batch)), mask=mask, config=config.grpo, **view
        )
        value = sums.loss / grpo.denominator(sums, config.grpo, LAYOUT.completion)
        adam.zero_grad()
        value.backward()
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in network.parameters()])
        for weight in network.parameters():
            weight.grad *= min(1.0, settings.max_grad_norm / float(norm))
        adam.param_groups[0]["lr"] = learning_rate(step, settings, STEPS)
        adam.step()
        metrics.append({"loss": float(value.detach()), "grad_norm": float(norm)})
    arrays = {f"params/{name}": weight.detach().numpy() for name, weight in network.named_parameters()}
    return Found(metrics, arrays, [])


@pytest.fixture(scope="module")
def learners(model, tmp_path_factory):
    """(stage, processes, micro-batch rows) -> what DeepSpeed made of the same updates."""
    folder = tmp_path_factory.mktemp("stages")
    found = {}
    for processes in PROCESSES:
        combinations = list(itertools.product(STAGES, MICRO))
        specs = [
            {
                "model": str(model),
                "out": str(folder / f"{stage}-{micro}-{processes}"),
                "rows": ROWS,
                "steps": STEPS,
                "optimizer": CLIP,
                "torch": {"zero_stage": stage},
                "learner": {"micro_batch_rows": micro},
                "actions": [
                    ["logprobs", [0, "policy"]],
                    *[["update", step] for step in range(STEPS)],
                    ["logprobs", [1, "reference"]],
                    ["sync", None],
                    ["logprobs", [1, "reference"]],
                ],
            }
            for stage, micro in combinations
        ]
        ran = run_workers(specs, folder, processes=processes)
        found |= {(stage, processes, micro): each for (stage, micro), each in zip(combinations, ran, strict=True)}
    return found


@pytest.mark.parametrize("micro", MICRO)
@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_makes_the_updates_of_plain_adamw(learners, plain, stage, processes, micro):
    found = learners[stage, processes, micro]
    clipped = [each["grad_norm"] > CLIP["max_grad_norm"] for each in plain.metrics]
    assert any(clipped) and not all(clipped)
    for step, (ours, theirs) in enumerate(zip(found.metrics, plain.metrics, strict=True)):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5, abs=1e-5), step
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5), step
    assert distance(found, plain) < 1e-4


@pytest.mark.parametrize("stage", STAGES)
def test_processes_and_micro_batches_change_nothing_but_rounding(learners, stage):
    expected = learners[stage, 1, MICRO[0]]
    for processes, micro in itertools.product(PROCESSES, MICRO):
        found = learners[stage, processes, micro]
        assert distance(found, expected, STATE) < 1e-4
        for ours, theirs in zip(found.metrics, expected.metrics, strict=True):
            for name, value in theirs.items():
                assert ours[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_zero_3_holds_its_own_slices_only_of_policy_and_of_reference(learners):
    whole = learners[0, 2, 8].held
    assert whole[0] == whole[1] > 0
    assert learners[3, 2, 8].held == [0, 0]  # a sharded parameter is empty outside the layer that computes with it
    assert learners[2, 2, 8].held == whole


def test_logprobs_are_those_of_hugging_face(learners, model):
    network = Phi3ForCausalLM.from_pretrained(model, dtype=torch.float64, attn_implementation="eager")
    batch = random_batch(ROWS, seed=0)
    with torch.no_grad():
        expected = grpo.from_completion_view(hugging_face_logprobs(network, grpo.separate_rows(batch)).numpy(), LAYOUT)
    expected = np.where(batch.completion_mask > 0, expected, 0)
    for found in learners.values():
        np.testing.assert_allclose(found.arrays["logprobs/0/policy"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("stage", "processes"), itertools.product(STAGES, PROCESSES))
def test_reference_is_a_tenth_old_and_nine_tenths_new_in_float32(learners, model, stage, processes):
    old, found = load_file(model / "model.safetensors"), learners[stage, processes, 8]
    for name, before in old.items():
        new, mixed = found.arrays[f"params/{name}"], found.arrays[f"reference/{name}"]
        assert not np.array_equal(new, before.numpy())
        np.testing.assert_allclose(mixed, 0.9 * new + 0.1 * before.numpy(), rtol=1e-6, atol=1e-8)


def test_scoring_by_the_reference_uses_what_was_mixed(learners, model, tmp_path):
    """The log-probabilities after the mix are those of a Hugging Face model with the mixed weights."""
    found = learners[3, 2, 8]
    network = Phi3ForCausalLM.from_pretrained(model, dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(torch.from_numpy(found.arrays[f"reference/{name}"]))
        batch = random_batch(ROWS, seed=1)
        expected = grpo.from_completion_view(hugging_face_logprobs(network, grpo.separate_rows(batch)).numpy(), LAYOUT)
    expected = np.where(batch.completion_mask > 0, expected, 0)
    np.testing.assert_allclose(found.arrays["logprobs/1/reference"], expected, rtol=0, atol=2e-5)


def spec(model: Path, out: Path, actions: list[list[Any]], **sections: Any) -> dict[str, Any]:
    return {"model": str(model), "out": str(out), "rows": ROWS, "steps": 10, "actions": actions, **sections}


@pytest.fixture(scope="module")
def bfloat16(model, tmp_path_factory):
    """In bfloat16 with a learning rate that bfloat16 weights could not take up."""
    folder = tmp_path_factory.mktemp("bfloat16")
    actions = [*[["update", step] for step in range(4)], ["sync", None], ["logprobs", [1, "reference"]]]
    specs = [
        spec(
            model,
            folder / str(stage),
            actions,
            torch={"zero_stage": stage},
            learner={"compute_dtype": "bfloat16", "micro_batch_rows": 4, "remat": "layer"},
            optimizer={"learning_rate": 1e-6},
        )
        for stage in (1, 2, 3)
    ]
    return dict(zip((1, 2, 3), run_workers(specs, folder, processes=2), strict=True))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_keeps_float32_masters_that_move(bfloat16, model, stage):
    old, found = load_file(model / "model.safetensors"), bfloat16[stage]
    for name, before in old.items():
        new = found.arrays[f"params/{name}"]
        moved = np.abs(new - before.numpy())
        assert 0 < moved.max() < 1e-5, name
        if "norm" not in name:
            assert np.array_equal(torch.tensor(new).bfloat16(), before.bfloat16()) or moved.max() < 1e-5
        mixed = 0.9 * new + 0.1 * before.numpy()
        np.testing.assert_allclose(found.arrays[f"reference/{name}"], mixed, rtol=1e-6, atol=1e-8)


def test_stages_agree_in_bfloat16(bfloat16):
    for stage in (2, 3):
        for ours, theirs in zip(bfloat16[stage].metrics, bfloat16[1].metrics, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2, abs=2e-3)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-2)


def test_layers_computed_again_give_the_same_update(model, tmp_path):
    actions = [["update", 0], ["update", 1]]
    specs = [
        spec(model, tmp_path / f"{stage}{remat}", actions, torch={"zero_stage": stage}, learner={"remat": remat})
        for stage, remat in itertools.product((0, 3), ("none", "layer"))
    ]
    first, *others = run_workers(specs, tmp_path)
    for found in others:
        assert distance(found, first, STATE) < 1e-5


class TestCheckpoints:
    """Save, restore, on any stage and number of processes."""

    BEFORE = (["update", 0], ["update", 1], ["sync", None])
    AFTER = (["update", 2], ["update", 3])

    @pytest.fixture(scope="class")
    def whole(self, model, tmp_path_factory):
        """Runs that were never stopped, which saved on their way; and where."""
        folder = tmp_path_factory.mktemp("checkpoints")
        actions = [*self.BEFORE, ["save", 2], *self.AFTER]
        found = {}
        for processes in PROCESSES:
            specs = [
                spec(model, folder / f"{stage}-{processes}", actions, torch={"zero_stage": stage}) for stage in STAGES
            ]
            ran = run_workers(specs, folder, processes=processes)
            found |= {(stage, processes): each for stage, each in zip(STAGES, ran, strict=True)}
        return folder, found

    @pytest.mark.parametrize("processes", PROCESSES)
    def test_a_restored_run_is_bitwise_the_whole_one(self, whole, model, tmp_path, processes):
        folder, expected = whole
        specs = [
            spec(
                model,
                tmp_path / str(stage),
                [["restore", None], *self.AFTER],
                torch={"zero_stage": stage},
                checkpoints=str(folder / f"{stage}-{processes}.checkpoints"),
            )
            for stage in STAGES
        ]
        for stage, found in zip(STAGES, run_workers(specs, tmp_path, processes=processes), strict=True):
            assert found.metrics[0] == [2, 14]
            assert found.metrics[1:] == expected[stage, processes].metrics[2:]
            for name, value in expected[stage, processes].arrays.items():
                assert np.array_equal(found.arrays[name], value), (stage, name)

    def test_it_goes_on_with_another_stage_and_number_of_processes(self, whole, model, tmp_path):
        folder, expected = whole
        pairs = [(3, 2, 1), (1, 2, 3), (0, 2, 3), (3, 2, 0)]  # saved on, by how many, restored on; by the other number
        specs = [
            spec(
                model,
                tmp_path / f"{saved}-{restored}",
                [["restore", 2], *self.AFTER],
                torch={"zero_stage": restored},
                checkpoints=str(folder / f"{saved}-{count}.checkpoints"),
            )
            for saved, count, restored in pairs
        ]
        for (saved, count, _), found in zip(pairs, run_workers(specs, tmp_path, processes=1), strict=True):
            assert distance(found, expected[saved, count], STATE) < 1e-5

    def test_a_killed_save_leaves_the_last_one_whole(self, whole, model, tmp_path):
        _, expected = whole
        out = tmp_path / "killed"
        run = spec(model, out, [*self.BEFORE, ["save", 2], ["update", 7], ["save killed", 3]], torch={"zero_stage": 3})
        run_workers([run], tmp_path, processes=2, killed=True)
        assert sorted(path.name for path in Path(f"{out}.checkpoints").iterdir()) == [".3.partial", "2"]
        again = spec(model, out, [["restore", None], *self.AFTER, ["save", 3]], torch={"zero_stage": 3})
        [found] = run_workers([again], tmp_path, processes=2)
        assert found.metrics[0] == [2, 14]
        for name, value in expected[3, 2].arrays.items():
            assert np.array_equal(found.arrays[name], value), name
        assert sorted(path.name for path in Path(f"{out}.checkpoints").iterdir()) == ["2", "3"]


def test_export_is_what_transformers_loads(model, tmp_path):
    actions = [["update", 0], ["export", str(tmp_path / "hf")], ["same", None]]
    [found] = run_workers([spec(model, tmp_path / "run", actions, torch={"zero_stage": 3})], tmp_path, processes=2)
    assert found.metrics[1] == [True, False]
    network, report = Phi3ForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True, dtype=torch.float32)
    assert not any(report.values()), report
    for name, weight in network.named_parameters():
        np.testing.assert_array_equal(weight.detach().numpy(), found.arrays[f"params/{name}"])


def test_a_token_that_the_embedding_lacks_is_named(model):
    """Before anything is computed: on a GPU a lookup beyond the table ends the process."""
    learner = Learner.__new__(Learner)
    learner.network_config = read_config(model)
    learner.engine = torch.nn.Identity()
    batch = random_batch(ROWS)
    place = tuple(np.argwhere(batch.groups >= 0)[-1])
    for token in (VOCABULARY, -1):
        batch.tokens[place] = token
        for use in (learner.update, lambda batch: learner.logprobs(batch, "policy")):
            with pytest.raises(InputError, match=f"batch: token id {token} is beyond the model's embedding, which has"):
                use(batch)


def test_stage_0_in_bfloat16_is_refused():
    config = run_config(learner={"compute_dtype": "bfloat16"}, torch={"zero_stage": 0})
    with pytest.raises(InputError, match=r"zero_stage = 0: .* no float32 master weights"):
        zero.deepspeed_config(config, OptimizerConfig())
    assert zero.deepspeed_config(config, None)["zero_optimization"] == {"stage": 0}  # nothing to keep where none learns
