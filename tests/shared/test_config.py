"""Configurations: the paper's defaults, and errors that name the field and the reason."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from parity import config as parity_config
from shared.cohorts.mimic3.options import Mimic3Config
from shared.config import (
    PRESETS,
    RENAMED,
    CheckpointConfig,
    DataConfig,
    GrpoConfig,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    RunConfig,
    WarmupConfig,
    grpo_preset,
    validate,
    validate_stored,
)
from shared.errors import InputError
from shared.grpo.losses import ALWAYS_ALLOWED, LOSSES

CONFIGS = sorted(path for path in (Path(__file__).parents[2] / "configs").glob("*.py") if path.stem != "__init__")


def refused(**values) -> str:
    with pytest.raises(InputError) as caught:
        validate({"name": "run", **values})
    message = str(caught.value)
    assert "\n" not in message
    return message


def leaves(kind: type = RunConfig, prefix: str = "") -> list[tuple[str, object]]:
    """(path, type) of every field that is not a section."""
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found += leaves(hint, f"{prefix}{name}.")
        else:
            found.append((prefix + name, hint))
    return found


def nested(path: str, value: object) -> dict:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


class TestPaper:
    """The authors' run."""

    def test_objective(self):
        grpo = GrpoConfig()
        assert (grpo.group_size, grpo.questions_per_step) == (7, 5)
        assert (grpo.beta, grpo.kl_estimator, grpo.kl_in_ratio) == (0.04, "k3", False)
        assert (grpo.ref_sync_steps, grpo.ref_mixup) == (64, 0.9)
        assert (grpo.loss, grpo.advantage_scale, grpo.inner_steps) == ("grpo", "group", 1)
        assert (grpo.mask_truncated, grpo.uniform_groups, grpo.rollout_correction) == (False, "keep", "none")
        assert (grpo.score_temperature, grpo.overlong_prompts) == ("one", "truncate_left")
        assert (grpo.reward_answer, grpo.reward_format, grpo.reward_length, grpo.overlong_soft) == (1, 0, 0, 0)

    def test_optimizer(self):
        optimizer = OptimizerConfig()
        assert (optimizer.learning_rate, optimizer.warmup_ratio) == (1e-6, 0.1)
        assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.999, 1e-8)
        assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.0, 1.0)

    def test_rollouts(self):
        rollout = RolloutConfig()
        assert rollout.temperature == 0.9
        assert (rollout.top_k, rollout.top_p, rollout.min_p) == (0, 1.0, 0.0)
        assert (rollout.max_prompt_tokens, rollout.max_new_tokens) == (9_000, 2_000)

    def test_run(self):
        config = RunConfig(name="paper")
        assert config.seed == 42
        assert config.data.train_questions == 30_000
        assert (config.data.num_choices, config.data.difficulty, config.data.mi_cutoff) == (5, 2.0, 0.5)
        assert config.steps == 6_000
        assert CheckpointConfig().every == 256
        assert LearnerConfig().compute_dtype == "auto"  # the paper's bfloat16 on its GPUs


@pytest.mark.parametrize(
    ("questions", "per_step", "inner", "steps", "wanted"),
    [(30_000, 5, 1, 0, 6_000), (11, 5, 1, 0, 3), (11, 5, 2, 0, 6), (11, 5, 2, 7, 7), (1, 5, 1, 0, 1)],
)
def test_steps_are_one_epoch_unless_given(questions, per_step, inner, steps, wanted):
    config = validate(
        {
            "name": "run",
            "data": {"train_questions": questions},
            "grpo": {"questions_per_step": per_step, "inner_steps": inner, "steps": steps},
        }
    )
    assert config.steps == wanted


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_valid(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    check = parity_config.validate if path.stem == "parity" else validate
    config = check(module.get_config())
    assert config.name == path.stem
    assert config.steps >= 1


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_say_their_name(name):
    assert validate({"name": "run", "grpo": grpo_preset(name)}).grpo.preset == name


def test_presets_are_the_ones_documented():
    assert set(PRESETS) == set(typing.get_args(typing.get_type_hints(GrpoConfig)["preset"]))
    assert GrpoConfig(**grpo_preset("paper")) == GrpoConfig()
    fixed = GrpoConfig(**grpo_preset("paper_fixed"))
    assert fixed == dataclasses.replace(GrpoConfig(), preset="paper_fixed", overlong_prompts="drop")
    modern = GrpoConfig(**grpo_preset("modern"))
    assert (modern.loss, modern.epsilon_low, modern.epsilon_high) == ("dapo", 0.2, 0.28)
    assert (modern.beta, modern.rollout_correction, modern.uniform_groups) == (0.0, "token", "refill")


def test_a_preset_can_be_changed_without_changing_it():
    grpo_preset("modern")["beta"] = 3.0
    assert PRESETS["modern"]["beta"] == 0.0
    with pytest.raises(InputError, match="unknown preset 'new'; there are paper, paper_fixed, modern"):
        grpo_preset("new")


class TestErrors:
    """The field, its value and the reason, in one line."""

    @given(st.sampled_from(leaves()))
    def test_a_wrong_type_names_the_field(self, leaf):
        path, _ = leaf
        field, value = path.split(".")[0], object()
        message = refused(**{field: nested(path, value)[field]})
        assert message.startswith(f"{path} = ")
        assert "must be" in message

    @given(
        st.sampled_from([path for path, hint in leaves() if hint is float or hint == float | None]),
        st.sampled_from([math.nan, math.inf, -math.inf]),
    )
    def test_numbers_are_finite(self, path, value):
        field = path.split(".")[0]
        assert refused(**{field: nested(path, value)[field]}) == f"{path} = {value!r}: must be a finite number"

    @given(st.sampled_from([path for path, hint in leaves() if hint is int]))
    def test_a_whole_number_is_no_fraction_no_text_and_no_truth(self, path):
        field = path.split(".")[0]
        for value in (1.5, "1", True, None):
            assert refused(**{field: nested(path, value)[field]}) == f"{path} = {value!r}: must be a whole number"

    @given(st.sampled_from([path for path, hint in leaves() if typing.get_origin(hint) is typing.Literal]))
    def test_a_choice_lists_its_options(self, path):
        field = path.split(".")[0]
        options = typing.get_args(dict(leaves())[path])
        assert refused(**{field: nested(path, "other")[field]}) == (
            f"{path} = 'other': must be one of {', '.join(map(str, options))}"
        )

    @pytest.mark.parametrize(
        ("values", "wanted"),
        [
            ({"grpo": {"bta": 1.0}}, "unknown field grpo.bta; did you mean grpo.beta?"),
            ({"gpro": {}}, "unknown field gpro; did you mean grpo?"),
            ({"warmup": {"optimizer": {"b_1": 0.5}}}, "unknown field warmup.optimizer.b_1; did you mean"),
            ({"checkpoint": {"zzzz": 1}}, "unknown field checkpoint.zzzz; known: every, keep"),
            ({"grpo": 3}, "grpo = 3: must be a section with fields"),
            ({"warmup": {"optimizer": 1e-3}}, "warmup.optimizer = 0.001: must be a section with fields"),
            ({"warmup": {"optimizer": {"b1": 1.0}}}, "warmup.optimizer.b1 = 1.0: must be in [0, 1)"),
            ({"grpo": {"delta": "x"}}, "grpo.delta = 'x': must be a number or None"),
        ],
    )
    def test_structure(self, values, wanted):
        assert refused(**values).startswith(wanted)

    def test_a_name_is_needed(self):
        with pytest.raises(InputError, match="^name: is needed and not given$"):
            validate({})

    @pytest.mark.parametrize(
        ("path", "value", "reason"),
        [
            ("data.patients", 0, "must be at least 1"),
            ("data.num_choices", 6, "must be 2 to 5, the letters A to E"),
            ("data.num_choices", 1, "must be 2 to 5, the letters A to E"),
            ("data.difficulty", 0.0, "must be above 0"),
            ("data.mi_cutoff", -0.1, "must be at least 0"),
            ("data.context_features", -1, "must be at least 0"),
            ("data.valid_patients", 2_000, "must leave training patients: below patients = 2000"),
            ("model.vocab_size", 259, "must be at least 300"),
            ("model.hidden_size", 130, "must be an even multiple of num_attention_heads = 4"),
            ("model.num_key_value_heads", 3, "must divide num_attention_heads = 4"),
            ("model.num_attention_heads", 0, "must be at least 1"),
            ("warmup.worked_fraction", 1.1, "must be in [0, 1]"),
            ("warmup.sequence_length", 1, "must be at least 2"),
            ("grpo.group_size", 1, "must be at least 2"),
            ("grpo.inner_steps", 0, "must be at least 1"),
            ("grpo.questions_per_step", 0, "must be at least 1"),
            ("grpo.beta", -0.01, "must be at least 0"),
            ("grpo.delta", 0.0, "must be above 0, or None"),
            ("grpo.epsilon_low", 1.0, "must be below 1: the ratio is positive"),
            ("grpo.ref_mixup", 1.5, "must be in [0, 1]"),
            ("grpo.max_logprob_gap", 0.0, "must be above 0"),
            ("optimizer.learning_rate", -1.0, "must be at least 0"),
            ("optimizer.warmup_ratio", 1.0, "must be in [0, 1)"),
            ("optimizer.b2", 1.0, "must be in [0, 1)"),
            ("optimizer.eps", 0.0, "must be above 0"),
            ("optimizer.max_grad_norm", 0.0, "must be above 0"),
            ("rollout.temperature", -0.1, "must be at least 0"),
            ("rollout.temperature", 0.0, "must be above 0 in training: greedy samples of a group are all equal"),
            ("rollout.top_p", 0.0, "must be in (0, 1]"),
            ("rollout.min_p", 1.0, "must be in [0, 1)"),
            ("rollout.max_new_tokens", 0, "must be at least 1"),
            ("jax.mesh_fsdp", 0, "must be at least 1, or -1"),
            ("learner.micro_batch_rows", 0, "must be at least 1"),
            ("evaluation.bootstrap", 99, "must be at least 100"),
            ("checkpoint.every", 0, "must be at least 1"),
        ],
    )
    def test_out_of_range(self, path, value, reason):
        field = path.split(".")[0]
        assert refused(**{field: nested(path, value)[field]}) == f"{path} = {value!r}: {reason}"

    def test_both_question_files_or_neither(self):
        assert "give both `train` and `valid`" in refused(data={"train": "questions.parquet"})

    def test_a_real_cohort_needs_its_files(self):
        assert refused(data={"cohort": "sepsis"}).startswith("data.source = ''")
        assert validate({"name": "run", "data": {"cohort": "sepsis", "source": "raw"}}).data.source == "raw"

    @pytest.mark.parametrize("truncation", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
    @pytest.mark.parametrize("correction", ["token", "sequence"])
    def test_a_truncated_distribution_cannot_be_corrected_for(self, truncation, correction):
        message = refused(rollout=truncation, grpo={"rollout_correction": correction})
        assert message.startswith(f"grpo.rollout_correction = '{correction}': cannot go with top_k, top_p or min_p")
        assert validate({"name": "run", "rollout": truncation}).grpo.rollout_correction == "none"

    def test_sections_that_do_not_fit_each_other(self):
        message = refused(grpo={"overlong_soft": 2_000})
        assert message == "grpo.overlong_soft = 2000: must be below rollout.max_new_tokens = 2000"
        message = refused(grpo={"loss": "gspo"})
        assert message == "grpo.ratio_level = 'token': must be 'sequence' with loss = 'gspo'"
        message = refused(store_trajectories=True, learner={"length_bucket": 8})
        assert message.startswith("learner.length_bucket = 8: must be 0 with store_trajectories")


@pytest.mark.parametrize("loss", LOSSES)
def test_a_field_that_only_other_losses_read_is_refused(loss):
    level = {"ratio_level": LOSSES[loss].ratio_level or "token"}
    for name in {name for row in LOSSES.values() for name in row.reads}:
        section = level | {"loss": loss, name: 0.75}
        if name in LOSSES[loss].reads or name in ALWAYS_ALLOWED:
            assert getattr(validate({"name": "run", "grpo": section}).grpo, name) == 0.75
        else:
            assert refused(grpo=section) == f"grpo.{name} = 0.75: loss {loss!r} does not read it; leave it out"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_goes_with_every_preset(loss, preset):
    section = grpo_preset(preset) | {"loss": loss, "ratio_level": LOSSES[loss].ratio_level or "token"}
    assert validate({"name": "run", "grpo": section}).grpo.loss == loss


def test_a_loss_of_the_command_line_makes_the_files_fields_for_another_loss_as_if_not_set():
    values = {"name": "run", "grpo": {"loss": "sapo", "delta": 1.6, "sapo_temperature_pos": 2.0}}
    section = validate(values, given=["grpo.loss", "grpo.sapo_temperature_pos"]).grpo
    assert (section.delta, section.sapo_temperature_pos) == (None, 2.0)
    with pytest.raises(InputError, match=r"grpo.delta = 1.6: loss 'sapo' does not read it"):
        validate(values, given=["grpo.loss", "grpo.delta"])


def test_a_config_dict_and_a_mapping_are_the_same():
    values = {"name": "run", "grpo": {"beta": 0.1, "delta": None}, "optimizer": {"learning_rate": 1}}
    assert validate(ConfigDict(values)) == validate(values)
    assert isinstance(validate(values).optimizer.learning_rate, float)


def test_what_a_section_leaves_out_is_the_sections_own_default():
    config = validate({"name": "run", "warmup": {"optimizer": {"learning_rate": 2e-3}}})
    wanted = dataclasses.replace(WarmupConfig().optimizer, learning_rate=2e-3)
    assert config.warmup.optimizer == wanted
    assert (wanted.b2, wanted.warmup_ratio) != (OptimizerConfig().b2, OptimizerConfig().warmup_ratio)


def test_a_config_survives_its_own_file():
    """`config.json` in a work directory is validated again by `launch.export`."""
    config = validate({"name": "run", "grpo": grpo_preset("modern"), "model": {"hidden_size": 64}})
    assert validate(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_answered_with_the_new_one(old, new):
    section, field = old.split(".")
    assert refused(**{section: {field: 1}}) == f"{old}: is now {new}"
    assert new in dict(leaves()) and old not in dict(leaves())


def test_a_stored_config_is_read_under_the_new_names():
    stored = {"name": "run", "learner": {"mesh_tensor": 4, "remat": "dots"}, "rollout": {"mesh_tensor": 8, "slots": 3}}
    config = validate_stored(stored)
    assert (config.jax.mesh_tensor, config.jax.rollout_mesh_tensor) == (4, 8)
    assert (config.learner.remat, config.rollout.slots) == ("dots", 3)
    assert stored["learner"] == {"mesh_tensor": 4, "remat": "dots"}
    assert validate_stored(stored | {"jax": {"mesh_tensor": 2}}).jax.mesh_tensor == 2
    for damaged, message in (
        ({"jax": 3}, "^jax = 3: must be a section"),
        ({"learner": 3}, "^learner = 3: must be a section"),
    ):
        with pytest.raises(InputError, match=message):
            validate_stored(stored | damaged)
    with pytest.raises(InputError, match="must be a mapping of fields, not list"):
        validate_stored([])


def test_defaults_are_valid():
    for kind in (DataConfig, ModelConfig, WarmupConfig, RolloutConfig, LearnerConfig):
        assert kind() == kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig(name="run").seed = 3


# What each task reads of the options that make questions; everything else must be left alone.
OTHER_VALUES = {
    "num_choices": 3, "difficulty": 1.0, "mi_cutoff": 0.3, "balance": "train", "all_victims": True, "masked": 2,
    "causal": True, "core_features": 5, "core_kind": "number", "option_order": "sorted", "context_features": 8,
}  # fmt: skip
READ = {
    ("sepsis", "denoising", "none"): set(OTHER_VALUES),
    ("hospitalized", "denoising", "none"): set(OTHER_VALUES),
    ("custom", "denoising", "none"): set(OTHER_VALUES),
    ("hospitalized", "aki", "none"): {"balance"},
    ("stroke", "mrs_3m", "none"): {"balance", "num_choices"},
    ("stroke", "mace_1y", "none"): {"balance"},
    ("mimic3", "measurement", "none"): set(),
    ("mimic3", "mortality", "none"): set(),
    ("sepsis", "denoising", "paper"): {"num_choices", "difficulty", "mi_cutoff", "masked", "all_victims"},
    ("hospitalized", "aki", "paper"): set(),
    ("stroke", "mrs_3m", "paper"): set(),
    ("stroke", "mace_1y", "paper"): set(),
}


@pytest.mark.parametrize(("cohort", "task", "compat"), READ)
def test_an_option_that_a_task_does_not_read_is_refused(cohort, task, compat):
    base = {"cohort": cohort, "task": task, "compat": compat, "source": "raw"}
    assert validate({"name": "run", "data": base}).data.task == task
    for name, value in OTHER_VALUES.items():
        if name in READ[cohort, task, compat]:
            assert getattr(validate({"name": "run", "data": base | {name: value}}).data, name) == value
        else:
            message = refused(data=base | {name: value})
            assert message.startswith(f"data.{name} = {value!r}: ") and f"task {task!r} does not read it" in message


def test_every_option_of_the_data_section_is_walked_through():
    elsewhere = {"cohort", "task", "source", "train", "valid", "compat", "patients", "valid_patients", "split", "held_out",
                 "fit", "train_questions", "valid_questions", "encoding", "delimiter", "decimal", "exclude",
                 "mimic3"}  # fmt: skip
    assert {field.name for field in dataclasses.fields(DataConfig)} == elsewhere | set(OTHER_VALUES)


def test_sizes_that_nothing_reads_are_refused():
    real = {"cohort": "sepsis", "source": "raw"}
    assert "only a synthetic registry that is drawn reads it" in refused(data=real | {"patients": 300})
    assert "only a synthetic registry that is drawn" in refused(data={"source": "raw", "patients": 300})
    late = real | {"split": "time", "held_out": "2023-01-01"}
    assert "held_out says who is held out" in refused(data=late | {"valid_patients": 30})
    assert validate({"name": "run", "data": late}).data.held_out == "2023-01-01"
    # What the original did anyway may be said, so that a config names it.
    assert validate({"name": "run", "data": real | {"compat": "paper", "balance": "none"}}).data.balance == "none"


SHIPPED = {"data": {"patients": 160, "core_features": 26, "valid_patients": 40}}
SERVED = {"torch": {"rollout_engine": "server", "server_url": "http://localhost:8000", "server_weights": "/dev/shm/w"}}


@pytest.mark.parametrize(
    ("file", "given", "unset"),
    [
        (SHIPPED, {"data.cohort": "custom", "data.source": "mine"}, {"data.patients": 2_000}),
        (SHIPPED, {"data.source": "mine"}, {"data.patients": 2_000}),
        (
            SHIPPED,
            {"data.cohort": "hospitalized", "data.source": "mine", "data.task": "aki"},
            {"data.patients": 2_000, "data.core_features": 0},
        ),
        (SHIPPED, {"data.split": "site", "data.held_out": "A"}, {"data.valid_patients": 1_000}),
        (
            {"data": {"cohort": "custom", "source": "mine", "encoding": "cp949", "exclude": "out.csv"}},
            {"data.cohort": "sepsis"},
            {"data.encoding": "", "data.exclude": ""},
        ),
        (
            {"data": {"split": "site", "held_out": "A", "source": "mine"}},
            {"data.split": "random"},
            {"data.held_out": ""},
        ),
        (SERVED, {"torch.rollout_engine": "vllm"}, {"torch.server_url": "", "torch.server_weights": ""}),
    ],
)
def test_what_the_file_set_for_its_own_choice_is_no_error_where_the_command_line_chooses_otherwise(file, given, unset):
    def values(*more: dict) -> dict:
        found = {"name": "run", **{section: dict(fields) for section, fields in file.items()}}
        for name, value in (pair for each in more for pair in each.items()):
            section, _, field = name.partition(".")
            found[section][field] = value
        return found

    config = validate(values(given), given)
    for name, default in unset.items():
        section, field = name.split(".")
        assert getattr(getattr(config, section), field) == default
        with pytest.raises(InputError, match=f"^({'|'.join(unset)}) = "):  # in the file alone it is one
            validate(values(given))
        set_there = {name: file[section][field]}
        with pytest.raises(InputError, match=f"^{name} = "):  # and on the command line
            validate(values(given, set_there), [*given, name])


def test_options_of_mimic3_are_for_it_alone():
    own = {"fix": "temperature", "ties": "introsort", "stays": 5, "memory_limit": "2GB", "threads": 1, "cache": "kept"}
    base = {"cohort": "mimic3", "task": "mortality", "source": "raw"}
    assert dataclasses.asdict(validate({"name": "run", "data": base | {"mimic3": own}}).data.mimic3) == own
    other = {"cohort": "sepsis", "task": "denoising", "source": "raw"}
    for name, value in own.items():
        message = refused(data=other | {"mimic3": {name: value}})
        assert message == f"data.mimic3.{name} = {value!r}: goes with cohort = 'mimic3' only"
    # What the file set for its own cohort is as if not set; what the command line sets is refused.
    chosen = {"name": "run", "data": other | {"mimic3": own}}
    given = ["data.cohort", "data.task"]
    assert validate(chosen, given).data.mimic3 == Mimic3Config()
    with pytest.raises(InputError, match="^data.mimic3.stays = 5: goes with cohort = 'mimic3' only"):
        validate(chosen, [*given, "data.mimic3.stays"])


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("fix", "everything", "'everything' is no correction; there are all, mean_pressure"),
        ("ties", "coin", "must be one of stable, introsort"),
        ("stays", 0, "must be at least 1"),
        ("threads", -1, "must be at least 0"),
        ("memory_limit", "lots", "not a size; write it like 4GB or 1500MB"),
        ("memory_limit", "10MB", "is too little; give 1GB or more"),
    ],
)
def test_wrong_options_of_mimic3_are_named(field, value, reason):
    own = {"cohort": "mimic3", "task": "mortality", "source": "raw", "mimic3": {field: value}}
    message = refused(data=own)
    assert message.startswith(f"data.mimic3.{field} = {value!r}: ") and reason in message


def test_a_wrong_choice_on_the_command_line_is_named():
    with pytest.raises(InputError, match=r"^data.task = 'none': must be one of"):
        validate({"name": "run", "data": {"task": "none"}}, ["data.task"])
