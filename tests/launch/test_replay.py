"""A run learns from another one's stored rollouts: the same backend gives the same bits, the other one the same curves."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from creason_jax.backend import Backend as JaxBackend
from creason_torch.backend import Backend as TorchBackend
from launch import config_file
from shared.backend import Backend
from shared.config import RunConfig, validate
from shared.errors import InputError, SyncError
from shared.policy.tokenizer import load_tokenizer
from shared.questions.prompts import decode
from shared.questions.record import read_questions
from shared.runs import replay, run
from shared.runs.replay import Recording
from shared.runs.showing import CONTROLS
from shared.storage import files
from shared.tasks.prompts import user_message
from shared.training.metrics_log import METRICS_FILE, differences, read_metrics, without_timings
from shared.training.trajectories import TrajectoryReader, TrajectoryWriter
from tests.support.commands import REPOSITORY, apart, here
from tests.support.smoke_runs import MADE_BEFORE

pytestmark = pytest.mark.slow

LOSS = 1e-4  # relative, at every step
ROUNDING = 1e-7  # of float32, in a sum of advantages of about 1 that cancel: all that a loss may be
FIELDS = {
    "store_trajectories": True,
    "data.patients": 80,
    "data.valid_patients": 20,
    "data.train_questions": 64,
    "data.valid_questions": 8,
    "warmup.steps": 24,
    "warmup.batch_size": 8,
    "warmup.sequence_length": 128,
    "grpo.reward_length": 0.5,
    "grpo.questions_per_step": 6,
    "grpo.steps": 4,
    "grpo.ref_sync_steps": 2,
    "torch.rollout_engine": "hf",
}
KINDS = {
    "paper": {},
    # Ends in the middle of a round; its batches are not all that was sampled, nor do all their tokens count.
    "refilled": {
        "grpo.inner_steps": 2,
        "grpo.steps": 5,
        "grpo.ref_sync_steps": 3,
        "grpo.loss": "dapo",
        "grpo.uniform_groups": "refill",
        "grpo.mask_truncated": True,
        "grpo.rollout_correction": "token",
    },
    "dropped": {
        "grpo.steps": 3,
        "grpo.loss": "bnpo",
        "grpo.uniform_groups": "drop",
        "grpo.advantage_scale": "batch",
        "learner.group_layout": False,
    },
}


def flags(kind: str, backend: str = "jax") -> list[str]:
    given = (FIELDS | KINDS[kind]).items()
    return [f"--config.{name}={value}" for name, value in given if backend == "torch" or not name.startswith("torch.")]


def a_config(kind: str, **changes) -> RunConfig:
    config = config_file.load(str(REPOSITORY / "configs" / "smoke.py"))
    for name, value in (FIELDS | KINDS[kind] | changes).items():
        *section, field = name.split(".")
        (config[section[0]] if section else config)[field] = value
    return validate(config)


def backend_of(name: str, config: RunConfig) -> Backend:
    if name == "torch":
        return TorchBackend(config)
    return JaxBackend(config, devices=jax.devices()[:1])  # as on a machine with one


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The work directory of a run with this backend and of this kind, recorded when it is first asked for."""
    found: dict[tuple[str, str], Path] = {}

    def record(backend: str, kind: str) -> Path:
        if (backend, kind) not in found:
            workdir = tmp_path_factory.mktemp(f"{backend}_{kind}")
            for name in MADE_BEFORE if found else ():
                source, target = found["jax", "paper"] / name, workdir / name
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
            config = a_config(kind)
            run.run(config, backend_of(backend, config), workdir, progress=False)
            found[backend, kind] = workdir
        return found[backend, kind]

    record("jax", "paper")
    return record


def replayed(backend: str, kind: str, recording: Path, workdir: Path, **changes) -> Path:
    config = a_config(kind, **changes)
    opened = Recording.open(recording)
    opened.check(config)
    replay.run(config, backend_of(backend, config), workdir, opened, progress=False)
    return workdir


def lines(workdir: Path) -> list[dict]:
    table = read_metrics(workdir / METRICS_FILE)
    return [without_timings(line) for line in table.to_dict("records")]


def apart_by(recording: Path, workdir: Path):
    """The largest differences from the recorded run, relative and absolute, by metric."""
    found = differences(*(read_metrics(path / METRICS_FILE) for path in (recording, workdir))).set_index("metric")
    return found["relative"], found["absolute"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_backend_gives_the_same_bits(recorded, kind, tmp_path):
    recording = recorded("jax", kind)
    workdir = replayed("jax", kind, recording, tmp_path / "again")
    theirs, ours = lines(recording), lines(workdir)
    assert len(theirs) == a_config(kind).steps
    gaps = [{name: line.pop(name) for name in list(line) if name.startswith("recorded_")} for line in ours]
    assert ours == theirs
    assert all(set(line.values()) == {0.0} for line in gaps)
    weights = [(path / "trained" / "model.safetensors").read_bytes() for path in (recording, workdir)]
    assert weights[0] == weights[1]
    # Whoever uses either model renders the recorded run's prompts.
    said = [
        (path / "prompts.json").read_bytes()
        for path in (recording, workdir, recording / "trained", workdir / "trained")
    ]
    assert len(set(said)) == 1
    # What it stores of its own is the recording again.
    readers = [TrajectoryReader(path / "trajectories") for path in (recording, workdir)]
    assert readers[0].steps() == readers[1].steps()
    for step in readers[0].steps():
        assert readers[0].checksums(step) == readers[1].checksums(step)
        assert readers[0].notes(step) == readers[1].notes(step)


@pytest.mark.parametrize(("first", "second", "kind"), [
    ("jax", "torch", "paper"), ("jax", "torch", "refilled"), ("jax", "torch", "dropped"), ("torch", "jax", "paper"),
])  # fmt: skip
def test_the_other_backend_gives_the_same_curves(recorded, first, second, kind, tmp_path):
    recording = recorded(first, kind)
    workdir = replayed(second, kind, recording, tmp_path / "again")
    relative, absolute = apart_by(recording, workdir)
    assert (relative["loss"] <= LOSS or absolute["loss"] <= ROUNDING) and relative["grad_norm"] <= 1e-5
    assert relative["entropy"] <= 1e-5 and relative["mean_logprob"] <= 1e-5
    assert absolute["logprob_gap"] <= 1e-4
    for name in ("learning_rate", "reward", "reward_std", "reward_answer", "truncated", "questions", "tokens"):
        assert absolute[name] == 0, name
    gaps = [name for name in read_metrics(workdir / METRICS_FILE) if name.startswith("recorded_")]
    assert len(gaps) == (2 if kind == "refilled" else 1)
    assert all(line[name] < 1e-4 for line in lines(workdir) for name in gaps)
    assert max(line["reward"] for line in lines(workdir)) > 0 and max(line["grad_norm"] for line in lines(workdir)) > 0


def altered(recording: Path, folder: Path, step: int, **changes) -> Path:
    """A copy of a recording in which `changes` (functions of an array) are made to one step, its checksums with them."""
    shutil.copytree(recording, folder, ignore=shutil.ignore_patterns("checkpoints", "data", "tensorboard"))
    reader = TrajectoryReader(folder / "trajectories")
    batch, rewards, ids = reader.read(step)
    notes = reader.notes(step)
    if "rewards" in changes:
        rewards = changes.pop("rewards")(rewards.copy())
    batch = dataclasses.replace(
        batch, **{name: change(getattr(batch, name).copy()) for name, change in changes.items()}
    )
    writer = TrajectoryWriter(folder / "trajectories", rows_per_step=reader.rows_per_step, layout=reader.layout)
    writer.append(step, batch, rewards, ids, notes=notes)
    return folder


@pytest.mark.parametrize("step", [0, 2])
def test_a_token_that_the_policy_lacks_is_named(recorded, step, tmp_path, monkeypatch):
    """In the first step before a learner is made, in another one before it learns from it."""
    recording = recorded("jax", "paper")
    rows = files.read_json(recording / "policy" / "config.json")["vocab_size"]

    def beyond(tokens):
        tokens[0, 0] = rows
        return tokens

    copy = altered(recording, tmp_path / "copy", step, tokens=beyond)
    if step == 0:
        monkeypatch.setattr(JaxBackend, "learner", None)
    with pytest.raises(
        InputError, match=f"step {step} of the trajectories: token id {rows} is beyond the model's embedding"
    ):
        replayed("jax", "paper", copy, tmp_path / "again")


def one_token(tokens: np.ndarray) -> np.ndarray:
    tokens[0, -a_config("paper").rollout.max_new_tokens] += 1  # the last completion's first
    return tokens


def test_one_other_token_shows(recorded, tmp_path):
    """The control of the bounds above."""
    recording = recorded("jax", "paper")
    copy = altered(recording, tmp_path / "copy", 1, tokens=one_token)
    workdir = replayed("jax", "paper", copy, tmp_path / "again")
    relative, absolute = apart_by(recording, workdir)
    assert relative["loss"] > 10 * LOSS and absolute["loss"] > ROUNDING and relative["grad_norm"] > 1e-3
    assert absolute["logprob_gap_max"] > 0.1
    ours, theirs = lines(workdir), lines(recording)
    assert ours[0]["loss"] == theirs[0]["loss"] and ours[1]["grad_norm"] != theirs[1]["grad_norm"]


def another_reward(rewards: np.ndarray) -> np.ndarray:
    rewards[2, 1] += 1
    return rewards


def test_rewards_that_do_not_give_the_advantages_are_refused(recorded, tmp_path):
    copy = altered(recorded("jax", "paper"), tmp_path / "copy", 1, rewards=another_reward)
    with pytest.raises(InputError, match="step 1 of the trajectories: its advantages do not follow from its rewards"):
        replayed("jax", "paper", copy, tmp_path / "again")


def test_another_policy_is_noticed(recorded, tmp_path):
    recording = recorded("jax", "paper")
    copy = tmp_path / "copy"
    shutil.copytree(recording, copy, ignore=shutil.ignore_patterns("checkpoints", "data", "tensorboard", "policy"))
    shutil.copytree(recording / "initial", copy / "policy")
    with pytest.raises(SyncError, match="policy is not the one that the recording was made with"):
        replayed("jax", "paper", copy, tmp_path / "again", **{"grpo.max_logprob_gap": 0.01})


def test_fewer_steps_are_the_beginning(recorded, tmp_path):
    recording = recorded("jax", "paper")
    workdir = replayed("jax", "paper", recording / "trajectories", tmp_path / "again", **{"grpo.steps": 2})
    relative, _ = apart_by(recording, workdir)
    assert len(lines(workdir)) == 2 and relative.max() == 0


def squeezed(text: str) -> str:
    """Text as it is shown, however its lines are broken."""
    return "".join(text.translate(CONTROLS).split())


@pytest.mark.parametrize("kind", ["paper", "dropped"])
def test_what_was_sampled_can_be_shown(recorded, kind, monkeypatch, capfd):
    """Its completions with their rewards, whole; in rows of one completion each too."""
    recording, group = recorded("jax", kind), a_config(kind).grpo.group_size
    reader = TrajectoryReader(recording / "trajectories")
    step = next(step for step in reader.steps() if any(reader.read(step)[2]))
    batch, rewards, ids = reader.read(step)
    asked = {question.id: question for question in read_questions(recording / "data" / "questions" / "train.parquet")}
    tokenizer = load_tokenizer(recording / "policy")
    shown = here("show", f"--workdir={recording}", f"--step={step}", "--n=50", monkeypatch=monkeypatch, capfd=capfd)
    assert shown.code == 0 and shown.err == ""
    real = np.array([bool(name) for name in ids])
    assert [float(text) for text in re.findall(r"^--- completion \d+: reward (\S+),", shown.out, re.M)] == [
        pytest.approx(value) for value in rewards[real].ravel()
    ]
    numbers = [int(text) for text in re.findall(r"^--- completion (\d+)", shown.out, re.M)]
    assert numbers == list(range(1, group + 1)) * (rewards[real].size // group)
    unwrapped = squeezed(shown.out)
    for row in np.flatnonzero(real):
        assert squeezed(user_message(asked[ids[row]])) in unwrapped
        for segment in range(1, batch.layout.group + 1):
            tokens = batch.tokens[row][(batch.groups[row] >= 0) & (batch.segments[row] == segment)]
            assert squeezed(decode(tokenizer, tokens)) in unwrapped
    assert f"right answer: {asked[ids[0]].answer}. " in shown.out


def test_examples_of_a_run_and_its_newest_step_are_shown(recorded, tmp_path, monkeypatch, capfd):
    recording = recorded("jax", "paper")
    shown = here("show", f"--workdir={recording}", "--n=2", monkeypatch=monkeypatch, capfd=capfd)
    assert shown.code == 0 and shown.err == ""
    assert shown.out.count("--- before training: ") == shown.out.count("--- after training: ") == 2
    assert "=== step 3 (0 to 3 are recorded), question 2 of 2 " in shown.out
    (first, *_) = files.read_json(recording / "evaluation" / "examples.json")
    assert squeezed(first["completion"]) in squeezed(shown.out)
    refused = here("show", f"--workdir={recording}", "--step=9", monkeypatch=monkeypatch, capfd=capfd)
    assert refused.refusal.endswith("has no step 9; it has 4 of them, 0 to 3")
    # The questions are needed for what is right and for what they are about, not for what was said.
    copy = altered(recording, tmp_path / "copy", 0)
    shown = here("show", f"--workdir={copy}", "--step=0", "--n=1", monkeypatch=monkeypatch, capfd=capfd)
    assert shown.code == 0 and "its question file is not there" in shown.out and "right answer:" not in shown.out
    assert "--- completion 1: reward " in shown.out


class TestCheckpointsElsewhere:
    """`checkpoint.folder` of a replay is its own, as that of any run."""

    def test_they_go_where_the_config_says(self, recorded, tmp_path, monkeypatch, capfd):
        recording, workdir, kept = recorded("jax", "paper"), tmp_path / "again", tmp_path / "kept"
        elsewhere = {"checkpoint.folder": str(kept)}
        replayed("jax", "paper", recording, workdir, **elsewhere)
        assert (kept / "4").is_dir() and not (workdir / "checkpoints").exists()
        told = read_metrics(workdir / METRICS_FILE)
        files.remove(workdir / "trained")
        replayed("jax", "paper", recording, workdir, **elsewhere)
        assert read_metrics(workdir / METRICS_FILE).equals(told)  # clock fields too: no step was made again
        # The policy that it started from lies in the recorded run, not in its own work directory.
        out = tmp_path / "exported"
        ended = here("export", f"--workdir={workdir}", f"--out={out}", monkeypatch=monkeypatch, capfd=capfd)
        assert ended.code == 0, ended
        assert (out / "model.safetensors").read_bytes() == (workdir / "trained" / "model.safetensors").read_bytes()
        config = a_config("paper", **elsewhere)
        with pytest.raises(InputError, match=r"kept: holds checkpoints of a replay; give another checkpoint\.folder"):
            run.run(config, backend_of("jax", config), tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()

    def test_those_of_the_recorded_run_are_left_alone(self, recorded, tmp_path):
        kept = tmp_path / "kept"
        shutil.copytree(recorded("jax", "paper") / "checkpoints", kept)
        shutil.copy(recorded("jax", "paper") / "config.json", kept)
        with pytest.raises(InputError, match=r"kept: holds a run that is no replay; give another checkpoint\.folder"):
            replayed("jax", "paper", recorded("jax", "paper"), tmp_path / "again", **{"checkpoint.folder": str(kept)})
        assert not (tmp_path / "again").exists()


class TestAnotherProcess:
    """Process 0 alone writes the work directory; another may have one of its own, on another machine."""

    @pytest.fixture
    def second(self, recorded, tmp_path):
        opened = Recording.open(recorded("jax", "paper"))

        def second(workdir: Path, **changes):
            config = a_config("paper", **changes)
            backend = backend_of("jax", config)
            backend.process = 1
            return replay.run(config, backend, workdir, opened, progress=False)

        return second

    def test_it_reads_nothing_that_process_0_wrote(self, second, tmp_path):
        elsewhere = {"checkpoint.folder": str(tmp_path / "kept")}
        assert second(tmp_path / "second", **elsewhere) == {}
        assert {path.name for path in (tmp_path / "second").iterdir()} == {"trained"}  # by JAX's process 0

    def test_it_says_that_it_does_not_see_its_checkpoints(self, second, tmp_path):
        with pytest.raises(
            InputError, match="process 1 does not see what process 0 wrote there.*give checkpoint.folder"
        ):
            second(tmp_path / "second")


class Halted(Exception):
    """Instead of a learner."""


def test_a_recording_or_a_policy_replaced_between_two_starts_is_refused(recorded, tmp_path, monkeypatch):
    recording = tmp_path / "copy"
    shutil.copytree(recorded("jax", "paper"), recording, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))

    def halt(*_, **__):
        raise Halted

    monkeypatch.setattr(JaxBackend, "learner", halt)
    for _ in range(2):
        with pytest.raises(Halted):
            replayed("jax", "paper", recording, tmp_path / "again")
    noted = files.read_json(tmp_path / "again" / "inputs.json")["inputs"]
    assert noted["recording"].keys() == {f"steps/{step:08d}.json" for step in range(4)}
    for path in (recording / "trajectories" / "steps" / "00000001.json", recording / "policy" / "model.safetensors"):
        before = path.read_bytes()
        if path.suffix == ".json":
            other = altered(recording, tmp_path / "other", 1, tokens=one_token)  # its first step is as it was
            shutil.copytree(other / "trajectories", recording / "trajectories", dirs_exist_ok=True)
        else:
            path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(InputError, match=f"^{path}: not what this run was begun with"):
            replayed("jax", "paper", recording, tmp_path / "again")
        path.write_bytes(before)


class TestRefusals:
    """What cannot be replayed is said in one line, before anything is begun."""

    @pytest.fixture
    def refused(self, recorded, tmp_path, monkeypatch, capfd):
        def refused(*more: str, replay: Path | None = None, workdir: Path = tmp_path / "again") -> str:
            given = [f"--replay={replay or recorded('jax', 'paper')}", f"--workdir={workdir}"]
            ended = here(
                "train", "--config=configs/smoke.py", *flags("paper"), *given, *more,
                monkeypatch=monkeypatch, capfd=capfd,
            )  # fmt: skip
            return ended.refusal

        return refused

    def test_another_config(self, refused, recorded):
        told = refused("--config.grpo.beta=0.1", "--config.learner.micro_batch_rows=1", "--config.seed=1")
        assert f"{recorded('jax', 'paper')}: recorded with another config (it differs in seed, grpo.beta)" in told

    def test_more_steps_than_there_are(self, refused):
        assert "lack step 4 of the 9 asked for" in refused("--config.grpo.steps=9")

    def test_a_step_that_is_not_there(self, refused, recorded, tmp_path):
        shutil.copytree(recorded("jax", "paper"), tmp_path / "copy")
        (tmp_path / "copy" / "trajectories" / "steps" / f"{2:08d}.json").unlink()
        told = refused(replay=tmp_path / "copy")
        assert "lack step 2 of the 4 asked for; let the recorded run go on to its end" in told
        assert "--config.grpo.steps=2" in told

    def test_a_damaged_array(self, recorded, tmp_path):
        shutil.copytree(recorded("jax", "paper"), tmp_path / "copy")
        array = tmp_path / "copy" / "trajectories" / "tokens"
        for path in (array / "c" / "1").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(InputError, match="tokens: step 1 is damaged or incomplete"):
            replayed("jax", "paper", tmp_path / "copy", tmp_path / "again")

    def test_no_recording(self, refused, tmp_path):
        assert "none: no such directory" in refused(replay=tmp_path / "none")
        (tmp_path / "empty").mkdir()
        assert "holds no trajectories; a run writes them with store_trajectories" in refused(replay=tmp_path / "empty")

    def test_trajectories_without_their_run(self, refused, recorded, tmp_path):
        shutil.copytree(recorded("jax", "paper") / "trajectories", tmp_path / "moved" / "trajectories")
        assert "no config.json beside the trajectories" in refused(replay=tmp_path / "moved" / "trajectories")

    def test_no_policy(self, recorded, tmp_path):
        shutil.copytree(recorded("jax", "paper"), tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy" / "policy")
        with pytest.raises(InputError, match="policy: the policy that the recorded run started from is not there"):
            replayed("jax", "paper", tmp_path / "copy", tmp_path / "again")

    def test_a_work_directory_of_something_else(self, recorded, tmp_path):
        recording = recorded("jax", "paper")
        with pytest.raises(InputError, match="holds a run that is no replay"):
            replayed("jax", "paper", recording, recording)
        workdir = tmp_path / "again"
        files.write_json(workdir / "replay.json", {"recording": "other", "first_step": {"tokens": 1}})
        with pytest.raises(InputError, match=r"holds a replay of another recording \(other\)"):
            replayed("jax", "paper", recording, workdir)
        config = a_config("paper")
        with pytest.raises(InputError, match="holds a replay; go on with its --replay"):
            run.run(config, backend_of("jax", config), workdir, progress=False)


def test_a_replay_moves_between_backends_and_the_curves_show_it(recorded, tmp_path, monkeypatch, capfd):
    """Two steps of one backend, two of the other, by the same command in the same work directory."""
    recording, workdir = recorded("jax", "paper"), tmp_path / "again"
    command = ["train", "--config=configs/smoke.py", f"--replay={recording}", f"--workdir={workdir}"]
    whole = apart(*command, *flags("paper", "torch"), "--backend=torch", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
    assert whole.code == 0, whole.err[-3_000:]
    assert f"replay of {recording}" in whole.out and "largest relative" in whole.out
    for name in ("trained", "checkpoints/4"):
        files.remove(workdir / name)
    moved = apart(*command, *flags("paper"), "--backend=jax")
    assert moved.code == 0, moved.err[-3_000:]
    assert [line["step"] for line in lines(workdir)] == [0, 1, 2, 3]
    assert (workdir / "checkpoints" / "4" / "state").is_dir() and (workdir / "checkpoints" / "2" / "params").is_dir()
    relative, absolute = apart_by(recording, workdir)
    assert (relative["loss"] <= LOSS or absolute["loss"] <= ROUNDING) and relative["grad_norm"] <= 1e-5
    assert (workdir / "trained" / "model.safetensors").is_file() and (workdir / "report.html").is_file()

    def curves(*arguments: str):
        return here("curves", f"--out={tmp_path / 'over.png'}", *arguments, monkeypatch=monkeypatch, capfd=capfd)

    shown = curves(f"--workdirs={recording},{workdir}", "--metrics=loss,reward,grad_norm")
    assert shown.code == 0 and f"{workdir} against {recording}" in shown.out
    assert f"{relative['loss']:.1e}" in shown.out
    assert (tmp_path / "over.png").read_bytes().startswith(b"\x89PNG")
    assert "has no rewrd; it has" in curves(f"--workdirs={recording},{workdir}", "--metrics=rewrd").refusal
    assert "two runs or more" in curves(f"--workdirs={recording}", "--metrics=loss").refusal
