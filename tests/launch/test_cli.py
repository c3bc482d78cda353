"""Whatever is typed by mistake ends with one clear line and exit code 2, never with a traceback."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from launch import config_file
from shared.config import validate
from shared.errors import InputError
from shared.questions.record import write_questions
from shared.storage import files
from shared.training.metrics_log import plain
from tests.support.commands import REPOSITORY, apart, here
from tests.support.exam import exam, exam_tokenizer, of_others
from tests.support.tiny import run_config, tiny_phi3

SMOKE = "--config=configs/smoke.py"
TRAIN = ("train", SMOKE, "--workdir={root}/new")
GIVEN = (
    *TRAIN,
    "--config.data.train={root}/train.parquet",
    "--config.data.valid={questions}",
    "--config.model.path={model}",
)
SMALL = ("--max_prompt_tokens=64", "--max_new_tokens=4", "--slots=8", "--compute_dtype=float32")
EVALUATE = ("evaluate", *SMALL, "--questions={questions}", "--out={root}/new")
ANSWERS = ("evaluate", "--answers={root}/answers.jsonl", "--questions={questions}", "--out={root}/new")
SERVER = ("--server_url=http://localhost:9", "--server_weights={root}/new")
EXPORT = ("export", "--workdir={run}", "--out={root}/new")
PREPARE = ("prepare", "--out={root}/new")
AKI = (*PREPARE, "--cohort=hospitalized", "--task=aki", "--source=x")
SEPSIS = (*PREPARE, "--cohort=sepsis")
REPORT = ("report",)

CASES = [
    # A flag that is none, or has no such value.
    (("train", "--cofnig=x"), "Unknown command line flag 'cofnig'"),
    ((*EVALUATE, "--model={model}", "--modl=x"), "Unknown command line flag 'modl'"),
    (("prepare", "--patient=3", "--out={root}/new"), "Unknown command line flag 'patient'"),
    (("report", "--workdri=x"), "Unknown command line flag 'workdri'"),
    (("export", "--wrokdir=x"), "Unknown command line flag 'wrokdir'"),
    ((*TRAIN, "stray"), "unexpected argument 'stray'; every option is a flag"),
    ((*TRAIN, "--backend=foo"), "flag --backend=foo: must be one of jax, torch"),
    ((*EVALUATE, "--model={model}", "--backend=foo"), "flag --backend=foo: must be one of jax, torch"),
    ((*EXPORT, "--backend=foo"), "flag --backend=foo: must be one of jax, torch"),
    ((*TRAIN, "--dry_run=maybe"), "--dry_run=maybe"),
    ((*EVALUATE, "--model={model}", "--limit=x"), "flag --limit=x: must be a whole number"),
    ((*EVALUATE, "--model={model}", "--temperature=nan"), "flag --temperature=nan: must be a finite number"),
    ((*EVALUATE, "--model={model}", "--cyclic=maybe"), "flag --cyclic=maybe: must be true or false"),
    ((*TRAIN, "--config.grpo.steps=abc"), "flag --config.grpo.steps=abc: must be a whole number"),
    ((*EVALUATE, "--model={model}", "--limit=-1"), "flag --limit=-1: must be a non-negative whole number"),
    ((*EVALUATE, "--model={model}", "--slots=0"), "flag --slots=0: must be a positive whole number"),
    ((*EVALUATE, "--model={model}", "--max_new_tokens=1.5"), "flag --max_new_tokens=1.5: must be a whole number"),
    ((*EVALUATE, "--model={model}", "--bootstrap=3"), "flag --bootstrap=3: must be a whole number >= 100"),
    ((*EVALUATE, "--model={model}", "--compute_dtype=int8"), "must be one of auto, bfloat16, float32"),
    ((*EXPORT, "--step=x"), "flag --step=x: must be a whole number"),
    ((*EXPORT, "--step=-1"), "flag --step=-1: must be a non-negative whole number"),
    ((*PREPARE, "--cohort=foo"), "flag --cohort=foo: must be one of"),
    ((*PREPARE, "--patients=x"), "flag --patients=x: must be a whole number"),
    ((*PREPARE, "--difficulty=x"), "flag --difficulty=x: must be a number"),
    # Processes.
    ((*TRAIN, "--coordinator=host:1"), "--coordinator, --num_processes and --process_id go together"),
    ((*TRAIN, "--process_id=-1"), "flag --process_id=-1: must be a non-negative whole number"),
    ((*TRAIN, "--num_processes=0"), "flag --num_processes=0: must be a positive whole number"),
    ((*TRAIN, "--num_processes=2", "--process_id=2", "--coordinator=h:1"), "--process_id=2: must be 0 to 1"),
    ((*TRAIN, "--num_processes=2", "--process_id=0", "--coordinator=h"), "--coordinator=h: must be HOST:PORT"),
    ((*TRAIN, "--backend=torch", "--process_id=0"), "--process_id: joins processes of --backend=jax; torchrun"),
    ((*EXPORT, "--num_processes=2"), "--coordinator, --num_processes and --process_id go together"),
    # What only the other backend reads.
    (
        (*TRAIN, "--backend=torch", "--config.jax.mesh_data=1"),
        "--config.jax.mesh_data: only the jax backend reads it",
    ),
    (
        (*TRAIN, "--backend=torch", "--config.jax.mesh_fsdp=2"),
        "--config.jax.mesh_fsdp: only the jax backend reads it",
    ),
    (
        (*TRAIN, "--backend=torch", "--config.jax.mesh_tensor=2"),
        "--config.jax.mesh_tensor: only the jax backend",
    ),
    (
        (*TRAIN, "--backend=torch", "--config.jax.rollout_mesh_tensor=2"),
        "--config.jax.rollout_mesh_tensor: only the jax backend",
    ),
    ((*TRAIN, "--config.learner.mesh_fsdp=4"), "learner.mesh_fsdp: is now jax.mesh_fsdp"),
    ((*TRAIN, "--backend=torch", "--config.learner.mesh_fsdp=4"), "learner.mesh_fsdp: is now jax.mesh_fsdp"),
    ((*TRAIN, "--noconfig.learner.sequence_parallel"), "learner.sequence_parallel: is now jax.sequence_parallel"),
    (
        (*TRAIN, "--backend=torch", "--noconfig.jax.sequence_parallel", "--dry_run"),
        "--config.jax.sequence_parallel: only the jax backend reads it, and this is torch; leave it out",
    ),
    (
        (*TRAIN, "--config.torch.zero_stage=2"),
        "--config.torch.zero_stage: only the torch backend reads it, and this is jax",
    ),
    ((*TRAIN, "--config.torch.server_url=http://a"), "--config.torch.server_url: only the torch backend reads it"),
    ((*TRAIN, "--local_rank=1"), "--local_rank: comes from the DeepSpeed launcher, which starts --backend=torch"),
    ((*EVALUATE, "--model={model}", "--engine=hf"), "--engine: chooses between engines of --backend=torch"),
    (
        ("plan", SMOKE, "--topology=v5e:2x2", "--config.torch.zero_stage=2"),
        "--config.torch.zero_stage: only the torch backend reads it, and this is jax",
    ),
    # What only another engine reads, or another mode.
    (
        (*TRAIN, "--backend=torch", "--config.torch.server_url=http://a"),
        "torch.server_url = 'http://a': only rollout_engine = 'server' reads it, and this is 'auto'; leave one of the two",
    ),
    (
        ("train", "--config={root}/with_server.py", "--dry_run"),
        "torch.server_weights = 'x': only rollout_engine = 'server'",
    ),
    (
        (*EVALUATE, "--model={model}", "--backend=torch", "--server_url=http://a"),
        "--server_url: only --engine=server reads",
    ),
    ((*EVALUATE, "--model={model}", "--backend=torch", "--engine=server"), "--server_url: --engine=server needs it"),
    (
        (*EVALUATE, "--model={model}", "--engine=server", *SERVER),
        "--engine: chooses between engines of --backend=torch",
    ),
    ((*GIVEN, "--config.data.masked=1"), "--config.data.masked: says how questions are made, and data.train = "),
    ((*GIVEN, "--config.data.cohort=synthetic"), "--config.data.cohort: says how questions are made"),
    ((*GIVEN, "--config.grpo.steps=3", "--config.data.train_questions=4"), "--config.data.train_questions: says how"),
    ((*ANSWERS, "--model={model}"), "--model: --answers does not read it; leave it out"),
    ((*ANSWERS, "--max_new_tokens=2000"), "--max_new_tokens: --answers does not read it; leave it out"),
    ((*ANSWERS, "--protocol=boxed"), "--protocol: --answers does not read it; leave it out"),
    ((*ANSWERS, "--device=cpu"), "--device: --answers does not read it; leave it out"),
    ((*ANSWERS, "--lm_eval={root}/new"), "--lm_eval: --answers does not read it; leave it out"),
    ((*ANSWERS,), "{root}/answers.jsonl, line 2: not JSON"),
    ((*EVALUATE, "--model={model}", "--allow_missing"), "--allow_missing: goes with --answers"),
    (
        ("evaluate", "--questions={questions}", "--lm_eval={root}/new", "--cyclic"),
        "--cyclic: --lm_eval without a --model does not read it; leave it out",
    ),
    # A flag that is missing.
    (("train",), "--config is needed, e.g. --config=configs/quickstart.py"),
    (("train", SMOKE), "--workdir is needed: the directory that this run may fill"),
    (("train", SMOKE, "--workdir="), "--workdir is needed: the directory that this run may fill"),
    (("train", "--config"), "Missing value for flag --config"),
    (("evaluate", "--model={model}"), "--questions must have a value"),
    (("export",), "--workdir must have a value"),
    (("prepare",), "--out must have a value"),
    (("report",), "--workdir must have a value"),
    # The config file.
    (("train", "--config=configs/none.py"), "flag --config=configs/none.py: no such file"),
    (("train", "--config", "configs/none.py"), "flag --config=configs/none.py: no such file"),
    (("train", "--config=configs"), "flag --config=configs: no such file"),
    (("train", "--config={root}/syntax.py"), "SyntaxError: "),
    (("train", "--config={root}/no_get_config.py"), "it defines no get_config()"),
    (("train", "--config={root}/wrong_preset.py"), "unknown preset 'nope'; there are paper, paper_fixed, modern"),
    (("train", "--config={root}/missing_import.py"), "line 1: ModuleNotFoundError: No module named 'nothere'"),
    (("train", "--config={root}/key.py"), "line 2: KeyError: 'k'"),
    (("train", "--config={root}/number.py"), "get_config() must return a ConfigDict, not a int"),
    (("train", "--config={root}/no_name.py", "--dry_run"), "name: is needed and not given"),
    (("train", f"{SMOKE}:argument"), "get_config() takes 0 positional arguments but 1 was given"),
    # An override of the config.
    ((*TRAIN, "--config.nothing=1"), "unknown field nothing"),
    ((*TRAIN, "--config.grpo.bta=1"), "unknown field grpo.bta; did you mean grpo.beta?"),
    ((*TRAIN, "--config.nothing.beta=1"), "--config.nothing.beta=1: the config has no such field"),
    ((*TRAIN, "--config.name.x=1"), "--config.name.x=1: the config has no such field"),
    ((*TRAIN, "--config.grpo.beta.x=1"), "--config.grpo.beta.x=1: the config has no such field"),
    ((*TRAIN, "--config.=1"), "--config.=1: the config has no such field"),
    ((*TRAIN, "--config.grpo.beta=abc"), "grpo.beta = 'abc': must be a number"),
    ((*TRAIN, "--config.grpo.beta"), "grpo.beta = True: must be a number"),
    ((*TRAIN, "--config.optimizer.learning_rate=abc"), "must be a number"),
    ((*TRAIN, "--config.optimizer.learning_rate=nan"), "optimizer.learning_rate = nan: must be a finite number"),
    ((*TRAIN, "--config.seed=1.5"), "flag --config.seed=1.5: must be a whole number"),
    ((*TRAIN, "--config.grpo=3"), "flag --config.grpo=3: is a section of the config"),
    ((*TRAIN, "--config.grpo.group_size=1"), "grpo.group_size = 1: must be at least 2"),
    ((*TRAIN, "--config.warmup.optimizer.b1=2"), "warmup.optimizer.b1 = 2.0: must be in [0, 1)"),
    ((*TRAIN, "--config.grpo.loss=ppo"), "grpo.loss = 'ppo': must be one of grpo, bnpo"),
    (("train", "--config.grpo.beta=1", SMOKE), "before a value for --config was specified"),
    (("train", "--config.grpo.beta=1"), "Unknown command line flag 'config.grpo.beta'"),
    # Where it is to go.
    (("train", SMOKE, "--workdir={root}/file"), "--workdir={root}/file: is a file; give a directory"),
    (("train", SMOKE, "--workdir={root}/file/x"), "--workdir={root}/file/x: cannot be made"),
    (("train", SMOKE, "--workdir={root}/other"), "{root}/other: holds a run with another config (it differs in name"),
    (("train", SMOKE, "--workdir={root}/broken"), "{root}/broken/config.json: not JSON"),
    (("train", SMOKE, "--workdir={root}/listed"), "{root}/listed/config.json: not the config of a run"),
    ((*EVALUATE[:-1], "--model={model}", "--out={root}/file"), "--out={root}/file: is a file; give a directory"),
    ((*EVALUATE[:-1], "--model={model}", "--out={root}/file/x"), "--out={root}/file/x: cannot be made"),
    ((*EXPORT[:-1], "--out={root}/other"), "--out={root}/other: exists already; give a new directory"),
    ((*EXPORT[:-1], "--out={root}/file/x"), "--out={root}/file: is a file; give a directory"),
    (("prepare", "--out={root}/file"), "--out={root}/file: is a file; give a directory"),
    (("prepare", "--out={root}/file/x"), "--out={root}/file/x: cannot be made"),
    # The run it is about.
    ((*REPORT, "--workdir={root}/none"), "{root}/none: holds no run"),
    ((*REPORT, "--workdir={root}/empty"), "{root}/empty: holds no run"),
    ((*REPORT, "--workdir={root}/file"), "{root}/file: holds no run"),
    ((*REPORT, "--workdir={root}/broken"), "{root}/broken/config.json: not JSON"),
    ((*REPORT, "--workdir={root}/listed"), "{root}/listed/config.json: not what a run writes there"),
    ((*REPORT, "--workdir={root}/bad_metrics"), "{root}/bad_metrics/metrics.jsonl: line 1 is not JSON"),
    (("export", "--workdir={root}/none", "--out={root}/new"), "{root}/none/config.json: no such file"),
    (("export", "--workdir={root}/broken", "--out={root}/new"), "{root}/broken/config.json: not JSON"),
    (("export", "--workdir={root}/listed", "--out={root}/new"), "the config must be a mapping of fields, not list"),
    (("export", "--workdir={root}/other", "--out={root}/new"), "{root}/other/initial/config.json: no such file"),
    (("export", "--workdir={root}/begun", "--out={root}/new"), "{root}/begun/checkpoints: no checkpoint yet"),
    ((*EXPORT, "--step=7"), "{run}/checkpoints: no checkpoint of step 7; there are 2, 3"),
    (
        ("export", "--workdir={root}/truncated", "--out={root}/new"),
        "{root}/truncated/checkpoints/3: not a whole checkpoint",
    ),
    (
        ("export", "--workdir={root}/emptied", "--out={root}/new"),
        "{root}/emptied/checkpoints/3: not a whole checkpoint",
    ),
    # The model.
    ((*GIVEN[:-1], "--config.model.path={root}/none"), "no config.json there; give a Hugging Face model directory"),
    (
        (*GIVEN, "--config.rollout.max_prompt_tokens=5", "--config.grpo.overlong_prompts=drop"),
        "all 4 prompts are longer",
    ),
    ((*GIVEN, "--config.jax.mesh_tensor=3"), "jax.mesh_data x mesh_fsdp x mesh_tensor"),
    ((*GIVEN, "--config.jax.mesh_fsdp=3"), "jax.mesh_data x mesh_fsdp x mesh_tensor"),
    ((*EVALUATE, "--model={root}/none"), "{root}/none: no such folder; give the folder of a Hugging Face model"),
    ((*EVALUATE, "--model={root}/file"), "{root}/file: is a file; give the folder of"),
    ((*EVALUATE, "--model={root}/no_weights"), "{root}/no_weights: no model.safetensors"),
    ((*EVALUATE, "--model={root}/no_config"), "{root}/no_config/config.json: no such file"),
    ((*EVALUATE, "--model={root}/cut_weights"), "{root}/cut_weights/model.safetensors: truncated or not safetensors"),
    ((*EVALUATE, "--model={root}/cut_config"), "{root}/cut_config/config.json: not JSON"),
    ((*EVALUATE, "--model={root}/cut_tokenizer"), "{root}/cut_tokenizer/tokenizer.json: not JSON"),
    ((*EVALUATE, "--model={root}/other_family"), "{root}/other_family/config.json: model_type is 'mamba'"),
    ((*EVALUATE, "--model={root}/other_width"), "has shape (512, 128), config.json asks for (512, 64)"),
    (
        (*EVALUATE, "--model={root}/listed_config"),
        "{root}/listed_config/config.json: must hold a JSON object, not a list",
    ),
    ((*GIVEN, "--config.model.path={root}/listed_config"), "config.json: must hold a JSON object, not a list"),
    (
        (*EVALUATE, "--model={root}/cut_settings"),
        "{root}/cut_settings: its tokenizer cannot be read (Unterminated string",
    ),
    ((*EVALUATE, "--model={root}/listed_settings"), "{root}/listed_settings: its tokenizer cannot be read"),
    ((*EVALUATE, "--model={root}/odd_tokenizer"), "{root}/odd_tokenizer: its tokenizer cannot be read"),
    ((*EVALUATE, "--model={root}/listed_generation"), "generation_config.json: must hold a JSON object, not a list"),
    # The questions.
    ((*GIVEN, "--config.data.train={root}/none.parquet"), "{root}/none.parquet: no such question file"),
    ((*GIVEN, "--config.data.train={root}/cut.parquet"), "{root}/cut.parquet: not a readable Parquet file"),
    ((*GIVEN, "--config.data.train={root}/none.parquet", "--config.data.valid="), "give both `train` and `valid`"),
    (
        (*GIVEN, "--config.data.train={questions}"),
        "data.valid = {questions}: 4 of its 4 patients are in data.train = {questions} too, so that they are not held out; give",
    ),
    ((*EVALUATE, "--model={model}", "--questions={root}/none.parquet"), "{root}/none.parquet: no such question file"),
    (
        (*EVALUATE, "--model={model}", "--questions={root}/cut.parquet"),
        "{root}/cut.parquet: not a readable Parquet file",
    ),
    ((*EVALUATE, "--model={model}", "--questions={root}/no_questions.parquet"), "there are no questions"),
    ((*EVALUATE, "--model={model}", "--questions={questions},{questions}"), "4 questions come more than once"),
    # The raw files.
    (SEPSIS, "source = '': the folder with the raw files of 'sepsis' is needed"),
    ((*SEPSIS, "--source={root}/none"), "{root}/none: no such folder"),
    ((*SEPSIS, "--source={root}/empty"), "{root}/empty: missing data.xlsx"),
    ((*SEPSIS, "--source={root}/file"), "{root}/file: is a file; give the folder that it lies in"),
    ((*PREPARE, "--source={root}/file"), "{root}/file: is a file; give the folder that it lies in"),
    ((*PREPARE, "--cohort=custom", "--source={root}/file"), "{root}/file: is a file; give the folder that it lies in"),
    ((*PREPARE, "--cohort=mimic3", "--task=mortality", "--source={root}/file"), "{root}/file: no such folder"),
    (("prepare", "--cohort=custom", "--source={root}/file", "--draft_codebook"), "{root}/file: is a file"),
    ((*PREPARE, "--cohort=custom", "--source={root}/gz"), "{root}/gz/data.csv.gz: not a readable CSV file"),
    ((*PREPARE, "--cohort=sepsis", "--source={root}/none", "--out={root}/new/deep/er"), "{root}/none: no such folder"),
    (("consult", "--model={model}", "--notes={root}/empty", "--out={root}/new"), "{root}/empty: "),
    # Files of a run that are not what a run writes.
    ((*REPORT, "--workdir={root}/bad_examples"), "{root}/bad_examples/evaluation/examples.json: not what a run writes"),
    (("curves", "--workdirs={root}/bad_summary", "--out={root}/new.png"), "summary.json: not what a run writes there"),
    (("curves", "--workdirs={root}/no_steps", "--out={root}/new.png"), "metrics.jsonl: no step of it has a reward"),
    ((*PREPARE, "--patients=0"), "patients = 0: must be at least 1"),
    ((*PREPARE, "--num_choices=9"), "num_choices = 9: must be 2 to 5"),
    ((*PREPARE, "--difficulty=nan"), "--difficulty=nan: must be a finite number"),
    ((*PREPARE, "--mi_cutoff=-1"), "mi_cutoff = -1.0: must be at least 0"),
    ((*PREPARE, "--patients=30", "--valid_patients=30"), "valid_patients = 30: must leave training patients"),
    # An option that nothing would read, whatever its value.
    ((*AKI, "--context_features=8"), "context_features = 8: task 'aki' does not read it; leave it out"),
    ((*AKI, "--context_features=0"), "--context_features: task 'aki' does not read it; leave it out"),
    ((*AKI, "--num_choices=5"), "--num_choices: task 'aki' does not read it; leave it out"),
    (
        (*SEPSIS, "--source=x", "--compat=paper", "--nocausal"),
        "--causal: with compat = 'paper', task 'denoising' does not",
    ),
    ((*SEPSIS, "--source=x", "--compat=paper", "--balance=all"), "--balance: with compat = 'paper', task 'denoising'"),
    ((*SEPSIS, "--source=x", "--compat=paper", "--seed=42"), "--seed: compat = 'paper' draws with the original's own"),
    ((*SEPSIS, "--source=x", "--patients=2000"), "--patients: only a synthetic registry that is drawn reads it"),
    (("prepare", "--out={root}", "--verify", "--masked=2"), "--masked: --verify does not read it; leave it out"),
    (("prepare", "--out={root}", "--verify", "--cohort=custom"), "--cohort: --verify does not read it; leave it out"),
    (("prepare", "--draft_codebook", "--source={root}", "--out={root}"), "--out: --draft_codebook does not read it"),
    ((*PREPARE, "--cohort=custom", "--source=x", "--dictionary=y"), "--dictionary: only --draft_codebook reads it"),
    ((*PREPARE, "--exclude=ids.csv"), "exclude = 'ids.csv': goes with cohort = 'custom' only"),
    ((*PREPARE, "--cohort=custom", "--source={root}/gz", "--delimiter=::"), "delimiter = '::': must be one character"),
    ((*PREPARE, "--cohort=custom", "--source={root}/gz", "--decimal=x"), "decimal = 'x': must be a comma or a point"),
    (
        ("prepare", "--draft_codebook", "--source={root}", "--cohort=stroke"),
        "--draft_codebook is for a registry of your own",
    ),
    (
        (
            *TRAIN,
            "--config.data.task=aki",
            "--config.data.cohort=hospitalized",
            "--config.data.source=x",
            "--config.data.context_features=8",
        ),
        "data.context_features = 8: task 'aki' does not read it; leave it out",
    ),
    (
        (*TRAIN, "--config.data.cohort=custom", "--config.data.source=x", "--config.data.patients=160"),
        "data.patients = 160: only a synthetic registry that is drawn reads it, not one with a source; leave it out",
    ),
]

CONFIG_FILES = {
    "syntax": "def get_config(:\n",
    "no_get_config": "x = 1\n",
    "wrong_preset": "from shared.config import grpo_preset\ndef get_config():\n    return grpo_preset('nope')\n",
    "missing_import": "import nothere\n",
    "key": "def get_config():\n    return {}['k']\n",
    "number": "def get_config():\n    return 3\n",
    "with_server": (
        "from ml_collections import ConfigDict\ndef get_config():\n"
        "    return ConfigDict({'name': 'x', 'torch': {'rollout_engine': 'hf', 'server_weights': 'x'}})\n"
    ),
    "no_name": "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n",
}


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """One folder with a model, questions, a run of two checkpoints, and everything that can be wrong with them."""
    import jax

    from creason_jax.learner.learner import Learner
    from creason_jax.mesh.sharding import make_mesh

    root = tmp_path_factory.mktemp("places")
    model, questions, run = root / "model", root / "questions.parquet", root / "run"
    exam_tokenizer(model)
    tiny_phi3(model, vocab_size=512, num_hidden_layers=1)
    write_questions(questions, exam(4))
    write_questions(root / "train.parquet", of_others(exam(4)))
    config = run_config(model={"path": str(model)}, jax={"mesh_fsdp": -1})
    files.write_json(run / "config.json", plain(dataclasses.asdict(config)))
    learner = Learner(
        config,
        model,
        make_mesh(config.jax, jax.devices()),
        optimizer=config.optimizer,
        steps=config.steps,
        reference=True,
    )
    for step in (2, 3):
        learner.save(run / "checkpoints", step, {"position": 2 * step})
    learner.finish_saves()

    for name, text in CONFIG_FILES.items():
        (root / f"{name}.py").write_text(text)
    (root / "file").write_text("x")
    (root / "answers.jsonl").write_text('{"id": "question-0", "completion": ""}\n{')
    for name, text in (("empty", ""), ("broken", "{"), ("listed", "[1]"), ("other", '{"name": "other"}')):
        (root / name).mkdir()
        if text:
            (root / name / "config.json").write_text(text)
    (root / "bad_metrics").mkdir()
    (root / "bad_metrics" / "metrics.jsonl").write_text("nothing\n")
    files.write_json(root / "bad_examples" / "config.json", {})
    files.write_json(root / "bad_summary" / "summary.json", [1])
    files.write_json(root / "bad_examples" / "evaluation" / "examples.json", [1])
    ended = {"before": {}, "after": {}, "environment": {"backend": "jax"}, "seed": 1}
    files.write_json(root / "no_steps" / "summary.json", {name: value or {"n": 1} for name, value in ended.items()})
    (root / "no_steps" / "metrics.jsonl").write_text("")
    content = gzip.compress(b"id,x\n" + b"".join(b"%d,%d\n" % (row, row * row) for row in range(5_000)))
    (root / "gz").mkdir()
    (root / "gz" / "data.csv.gz").write_bytes(content[:200] + bytes(50) + content[250:])
    (root / "gz" / "codebook.csv").write_text("column,display_name,section,kind\nid,id,,id\nx,x,,number\n")
    write_questions(root / "no_questions.parquet", [])
    shutil.copy(questions, root / "cut.parquet")
    half(root / "cut.parquet")

    for name in (
        "no_weights",
        "no_config",
        "cut_weights",
        "cut_config",
        "cut_tokenizer",
        "other_family",
        "other_width",
        "listed_config",
        "cut_settings",
        "listed_settings",
        "odd_tokenizer",
        "listed_generation",
    ):
        shutil.copytree(model, root / name)
    (root / "no_weights" / "model.safetensors").unlink()
    (root / "no_config" / "config.json").unlink()
    half(root / "cut_weights" / "model.safetensors")
    half(root / "cut_config" / "config.json")
    half(root / "cut_tokenizer" / "tokenizer.json")
    files.write_json(root / "other_family" / "config.json", {"model_type": "mamba"})
    files.write_json(root / "listed_config" / "config.json", [1])
    half(root / "cut_settings" / "tokenizer_config.json")
    files.write_json(root / "listed_settings" / "tokenizer_config.json", [1])
    files.write_json(root / "odd_tokenizer" / "tokenizer.json", {"model": {}, "added_tokens": []})
    files.write_json(root / "listed_generation" / "generation_config.json", [1])
    known = files.read_json(model / "config.json")
    files.write_json(root / "other_width" / "config.json", known | {"hidden_size": 64})

    shutil.copytree(run, root / "begun", ignore=shutil.ignore_patterns("checkpoints"))
    for name in ("truncated", "emptied"):
        shutil.copytree(run, root / name)
    for path in (root / "truncated" / "checkpoints" / "3" / "state").rglob("d/*"):
        half(path)
    shutil.rmtree(root / "emptied" / "checkpoints" / "3" / "state")
    there = set(root.rglob("*"))
    return {"root": str(root), "model": str(model), "questions": str(questions), "run": str(run), "there": there}


@pytest.fixture
def call(monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)

    def run(*arguments: str):
        return here(*arguments, monkeypatch=monkeypatch, capfd=capfd)

    return run


def test_there_are_several_cases_for_every_program():
    programs = [arguments[0] for arguments, _ in CASES]
    assert all(programs.count(name) >= 8 for name in ("train", "prepare", "evaluate", "export", "report"))


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "wanted"), CASES, ids=[" ".join(arguments) for arguments, _ in CASES])
def test_a_mistake_is_one_clear_line(arguments, wanted, places, call):
    root = Path(places["root"])
    ended = call(*(argument.format(**places) for argument in arguments))
    assert wanted.format(**places) in ended.refusal
    assert len(ended.refusal) < 600
    told = ("tokens ", "memory ")  # before weights are read
    assert all(line.startswith(told) for line in ended.out.splitlines())
    left = sorted(path.name for path in root.rglob("*") if path not in places["there"])
    shutil.rmtree(root / "new", ignore_errors=True)
    assert left == []


def test_what_a_program_writes_is_its_owners_alone(places, call):
    before = os.umask(0o022)
    try:
        call("report", f"--workdir={places['root']}/none")
        assert os.umask(0o022) == 0o077
    finally:
        os.umask(before)


def test_what_was_there_is_still_there(places, call):
    """A refused work directory is left as it was."""
    root = Path(places["root"])
    for name in ("other", "broken", "listed"):
        content = (root / name / "config.json").read_text()
        assert call("train", SMOKE, f"--workdir={root / name}").code == 2
        assert (root / name / "config.json").read_text() == content
        assert len(list((root / name).iterdir())) == 1


@pytest.mark.parametrize("program", ["train", "prepare", "evaluate", "export", "report", "review", "consult"])
def test_help(program, call):
    ended = call(program, "--help")
    assert ended.code == 0
    assert ended.err == ""
    assert "--out" in ended.out or "--workdir" in ended.out


@pytest.mark.parametrize(
    ("config", "flags", "wanted"),
    [
        ("phi4_sepsis", (), "(paper preset; loss grpo"),  # as many steps as an epoch has, said otherwise
        ("phi4_sepsis", ("--config.grpo.loss=dapo",), "(paper preset changed in: loss; loss dapo"),
        (
            "phi4_sepsis",
            ("--config.grpo.beta=0.0", "--config.grpo.group_size=8"),
            "(paper preset changed in: group_size, beta;",
        ),
        ("phi4_sepsis", ("--config.grpo.overlong_prompts=drop",), "(paper preset changed in: overlong_prompts;"),
        ("phi4_sepsis", ("--config.grpo.preset=paper_fixed",), "(paper_fixed preset changed in: overlong_prompts;"),
        ("phi4_sepsis", ("--config.grpo.preset=modern",), "(modern preset changed in: loss, epsilon_high, beta, "),
        ("quickstart", (), "(paper preset changed in: group_size, questions_per_step;"),
    ],
)
def test_a_preset_is_named_only_where_it_is_kept(config, flags, wanted, call, monkeypatch):
    monkeypatch.setattr("shared.runs.dry_run.lines", lambda *_, **__: iter(()))
    ended = call("train", f"--config=configs/{config}.py", *flags, "--dry_run")
    assert ended.code == 0 and wanted in ended.out


class TestOverrides:
    """Every field can be set, whether the file sets it or not."""

    @pytest.mark.parametrize(
        ("flag", "path", "value"),
        [
            ("--config.grpo.beta=0.5", "grpo.beta", 0.5),
            ("--config.grpo.delta=4", "grpo.delta", 4.0),
            ("--config.checkpoint.keep=7", "checkpoint.keep", 7),
            ("--config.warmup.optimizer.eps=1e-6", "warmup.optimizer.eps", 1e-6),
            ("--config.model.path=some/where", "model.path", "some/where"),
            ("--config.jax.mesh_data=2", "jax.mesh_data", 2),
            ("--config.store_trajectories", "store_trajectories", True),
            ("--noconfig.learner.group_layout", "learner.group_layout", False),
        ],
    )
    def test_a_field(self, flag, path, value, call, monkeypatch):
        seen = []
        monkeypatch.setattr("shared.runs.run.config_line", lambda config: seen.append(config) or "described")
        monkeypatch.setattr("shared.runs.dry_run.lines", lambda *_, **__: iter(()))
        ended = call("train", SMOKE, flag, "--dry_run")
        assert (ended.code, ended.out, ended.err) == (0, "described\n", "")
        [found] = seen
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value

    def test_a_file_may_take_an_argument(self, tmp_path):
        path = tmp_path / "config.py"
        path.write_text(
            "from ml_collections import ConfigDict\ndef get_config(name):\n    return ConfigDict(dict(name=name))\n"
        )
        assert validate(config_file.load(f"{path}:mine")).name == "mine"

    def test_sections_left_out_have_their_defaults(self, tmp_path):
        path = tmp_path / "config.py"
        path.write_text(
            "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict(dict(name='a'))\n"
        )
        assert validate(config_file.load(str(path))) == validate({"name": "a"})

    def test_a_locked_config_can_still_be_set(self, tmp_path, call, monkeypatch):
        monkeypatch.setattr("shared.runs.dry_run.lines", lambda *_, **__: iter(()))
        path = tmp_path / "config.py"
        path.write_text(
            "from ml_collections import ConfigDict\n"
            "def get_config():\n    config = ConfigDict(dict(name='a'))\n    config.lock()\n    return config\n"
        )
        ended = call("train", f"--config={path}", "--config.grpo.steps=3", "--dry_run")
        assert ended.out.startswith("a: 3 optimizer steps of 5 questions x 7 completions (paper preset")

    def test_a_missing_file_is_an_input_error(self):
        with pytest.raises(InputError, match="no such file"):
            config_file.load("nowhere.py")


@pytest.mark.slow
def test_a_dry_run_makes_nothing(places, call):
    root = Path(places["root"])
    ended = call(*(argument.format(**places) for argument in (*TRAIN, "--dry_run")))
    assert ended.code == 0
    assert ended.out.startswith("smoke: 6 optimizer steps")
    assert "(of 280 questions made to look at)" in ended.out and "\nmemory   about " in ended.out
    assert not (root / "new").exists()


@pytest.mark.slow
def test_what_works_says_what_it_made(places, call, tmp_path):
    model, questions, run = places["model"], places["questions"], places["run"]
    ended = call("export", f"--workdir={run}", "--step=2", f"--out={tmp_path / 'exported'}")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"step 2 of tiny written to {tmp_path / 'exported'}\n"
    ended = call(
        "evaluate", *SMALL, f"--model={model}", f"--questions={questions}", f"--out={tmp_path / 'out'}", "--limit=3"
    )
    assert ended.code == 0
    cut, boxes = ended.err.splitlines()
    assert cut == "3 prompts were longer than 64 tokens and lost their beginning"
    assert boxes.startswith("warning: 3 of 3 answers hold no boxed letter by --answer_rule=strict_first")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["n"] == 3


@pytest.mark.slow
def test_answers_as_texts_go_to_a_review(places, call, tmp_path):
    """Recommendations on notes, and completions of questions, by the same model twice."""
    notes = tmp_path / "notes.csv"
    notes.write_text("id,note,header\n7,Fever. Opinion: less.,Opinion\n8,Cough.,\n9,Pain.,Opinion\n")
    small = ["--max_prompt_tokens=600", *SMALL[1:]]
    ended = call("consult", *small, f"--model={places['model']}", f"--notes={notes}", f"--out={tmp_path / 'consult'}")
    assert ended.code == 0, ended
    assert "2 answered" in ended.out and "left out: 1 without their header, 0 too long" in ended.out
    rows = [json.loads(line) for line in (tmp_path / "consult" / "completions.jsonl").read_text().splitlines()]
    assert [(row["id"], row["question"], row["answer"]) for row in rows] == [
        ("7", "Fever.", "Opinion: less."),
        ("8", "Cough.", ""),
    ]
    refused = call(
        "consult", "--max_prompt_tokens=3", f"--model={places['model']}", f"--notes={notes}", f"--out={tmp_path / 'x'}"
    )
    assert "all notes are longer than 3 tokens" in refused.refusal and not (tmp_path / "x").exists()

    evaluation = [
        "evaluate",
        *small,
        f"--model={places['model']}",
        f"--questions={places['questions']}",
        "--completions",
    ]
    ended = call(*evaluation, f"--out={tmp_path / 'out'}")
    assert ended.code == 0, ended
    answers = tmp_path / "out" / "completions.jsonl"
    assert stat.S_IMODE(answers.stat().st_mode) == 0o600 and len(answers.read_text().splitlines()) == 4
    summary = files.read_json(tmp_path / "out" / "summary.json")
    assert summary["engine"]["engine"] == "jax Engine" and 0 < summary["engine"]["tokens"] <= 16
    assert 0 <= summary["engine"]["gap"] <= summary["engine"]["bound"] == 1e-3
    ended = call(
        "evaluate", f"--answers={answers}", f"--questions={places['questions']}", f"--out={tmp_path / 'again'}"
    )
    assert ended.code == 0, ended
    again = files.read_json(tmp_path / "again" / "summary.json")
    assert again.pop("made_elsewhere")["completions"] == 4
    assert again == {name: value for name, value in summary.items() if name != "made_elsewhere"} | {
        "engine": None, "prompts": None,
    }  # fmt: skip
    places_of_review = ["--raters=r1", f"--out={tmp_path / 'cases'}", f"--key={tmp_path / 'key.json'}"]
    same = call("review", f"--first={answers}", f"--second={answers}", *places_of_review)
    assert "all 4 pairs of answers are the same" in same.refusal and not (tmp_path / "cases").exists()
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row | {"completion": f"{row['completion']}."}) + "\n" for row in rows))
    made = call("review", f"--first={answers}", f"--second={other}", *places_of_review)
    assert made.code == 0 and (tmp_path / "cases" / "r1" / "ratings.xlsx").is_file(), made
    forced = call(*evaluation, f"--out={tmp_path / 'y'}", "--protocol=forced_choice")
    assert "--completions: only with --protocol=boxed" in forced.refusal


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("train", SMOKE, "--workdir={root}/other"),
        ("evaluate", "--model={root}/cut_weights", "--questions={questions}", "--out={root}/new"),
    ],
)
def test_in_a_process_of_its_own(arguments, places):
    """The same, with whatever libraries print while they are imported."""
    assert places["root"] in apart(*(argument.format(**places) for argument in arguments)).refusal
