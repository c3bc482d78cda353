"""What starts a run elsewhere: the text it would run or print, and where a stand-in for the cluster is easy, that it works."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.support.commands import REPOSITORY, here

TPU_VM = REPOSITORY / "launch" / "tpu" / "tpu_vm.sh"
SCRIPTS = sorted(path for kind in ("*.sh", "*.sbatch") for path in (REPOSITORY / "launch").rglob(kind))
JOBSET = ("--config=configs/smoke.py", "--image=registry.example/creason:1", "--claim=work")
# gcloud, but every worker is a folder of this machine.
GCLOUD = """#!/bin/bash
workers="0 1"
while [ $# -gt 0 ]; do
  case $1 in
    --worker=all) ;;
    --worker=*) workers=${1#--worker=} ;;
    --command) command=$2; shift ;;
  esac
  shift
done
for worker in $workers; do (cd "$WORKERS/$worker" && bash -c "$command"); done
"""
# Python, but a run that writes down how it was started and what ended it.
PYTHON = """#!/bin/bash
trap 'echo stopped; exit 0' TERM
printf '%s|' "$@"
echo
echo "compiled programs: $JAX_COMPILATION_CACHE_DIR"
while true; do sleep 0.05; done
"""


def test_there_are_scripts_and_bash_can_read_them():
    assert {path.name for path in SCRIPTS} >= {"tpu_vm.sh", "train.sbatch", "train_jax.sbatch", "serve.sh"}
    for path in SCRIPTS:
        checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
        assert checked.returncode == 0 and checked.stderr == "", checked.stderr


def dry(*arguments: str | Path) -> list[list[str]]:
    """The words of each command that a script prints in place of running it."""
    ended = subprocess.run(arguments, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stderr
    return [shlex.split(line) for line in ended.stdout.splitlines()]


def test_a_slice_is_started_by_one_command_on_all_workers():
    [words] = dry(TPU_VM, "--dry_run", "start", "pod", "us-east5-a", "--workdir=gs/runs", "--config.name=a b")
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert words[6:9] == ["--zone=us-east5-a", "--worker=all", "--command"]
    assert r"-m launch.train --workdir=gs/runs --config.name=a\ b >> train.log" in words[9]
    assert [line[0] for line in dry(TPU_VM, "--dry_run", "setup", "pod", "z")] == ["git", "gcloud", "gcloud"]
    assert "--worker=0" in dry(TPU_VM, "--dry_run", "watch", "pod", "z")[0]


@pytest.mark.parametrize("arguments", [(), ("start",), ("start", "pod"), ("fly", "pod", "z")])
def test_what_a_slice_needs_is_said(arguments):
    ended = subprocess.run([TPU_VM, *arguments], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "setup" in ended.stderr and ended.stderr.count("\n") == 1


@pytest.mark.slow
def test_workers_are_started_looked_at_and_stopped(tmp_path):
    for worker in ("0", "1"):
        folder = tmp_path / worker / "creason" / ".venv-tpu" / "bin"
        folder.mkdir(parents=True)
        (folder / "python").write_text(PYTHON)
        (folder / "python").chmod(0o755)
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    variables = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WORKERS": str(tmp_path)}

    def run(action: str, *flags: str) -> str:
        ended = subprocess.run(
            [TPU_VM, action, "pod", "z", *flags], env=variables, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def logs() -> list[str]:
        return [(tmp_path / worker / "creason" / "train.log").read_text() for worker in ("0", "1")]

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 60
        while not all(text in log for log in logs()):
            assert time.monotonic() < deadline, logs()
            time.sleep(0.02)

    run("start", "--config=configs/smoke.py", "--config.name=a 'b'")
    wait_for("-m|launch.train|--config=configs/smoke.py|--config.name=a 'b'|\n")
    wait_for("/creason/compiled\n")
    assert "not running" not in run("status")
    run("stop")
    wait_for("stopped\n")
    deadline = time.monotonic() + 60
    while run("status").count("not running") < 2:
        assert time.monotonic() < deadline


def test_slurm_starts_one_task_for_each_gpu():
    script = REPOSITORY / "launch" / "gpu" / "train_jax.sbatch"
    [words] = dry("bash", script, "--dry_run", "--config.name=a b")
    assert words[:2] == ["srun", "--kill-on-bad-exit=1"]
    assert words[-3:] == ["--config=configs/phi4_sepsis.py", "--workdir=runs/phi4", "--config.name=a b"]
    options = dict(
        line.removeprefix("#SBATCH --").split("=") for line in script.read_text().splitlines() if "#SBATCH --" in line
    )
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8"
    assert options["signal"] == "TERM@300"  # to the tasks; with B: only the script would get it


def jobset(monkeypatch, capfd, *flags: str):
    ended = here("jobset", *JOBSET, *flags, monkeypatch=monkeypatch, capfd=capfd)
    assert ended.code == 0, ended.err
    return yaml.safe_load(ended.out)


@pytest.mark.parametrize(
    ("topology", "label", "hosts", "chips"),
    [
        ("v5p:4x4x4", "tpu-v5p-slice", 16, 4),
        ("v5p:2x2x1", "tpu-v5p-slice", 1, 4),
        ("v4:2x2x2", "tpu-v4-podslice", 2, 4),
        ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8),
        ("v5e:4x4", "tpu-v5-lite-podslice", 4, 4),
        ("v6e:1x1", "tpu-v6e-slice", 1, 1),
        ("v6e:16x16", "tpu-v6e-slice", 64, 4),
    ],
)
def test_a_jobset_has_a_pod_for_each_host_of_its_slices(topology, label, hosts, chips, monkeypatch, capfd):
    found = jobset(monkeypatch, capfd, f"--topology={topology}", "--slices=2", "--train=--config.jax.mesh_data=2")
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    # The headless service is JobSet's own, asked for here.
    assert found["spec"]["network"] == {
        "enableDNSHostnames": True,
        "subdomain": found["metadata"]["name"],
        "publishNotReadyAddresses": True,
    }
    [replicated] = found["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert replicated["replicas"] == 2
    assert job["completions"] == job["parallelism"] == hosts
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology.split(":")[1],
    }
    [container] = pod["containers"]
    assert container["resources"] == {"requests": {"google.com/tpu": chips}, "limits": {"google.com/tpu": chips}}
    assert container["command"][:3] == ["python", "-m", "launch.train"]
    # Stopped, it has not succeeded: another code than 0, so that it is started again.
    assert "--stopped_exit_code=75" in container["command"]
    assert container["command"][-1] == "--config.jax.mesh_data=2"
    [volume], [mounted] = pod["volumes"], container["volumeMounts"]
    assert volume["name"] == mounted["name"] and volume["persistentVolumeClaim"] == {"claimName": "work"}
    assert f"--workdir={mounted['mountPath']}/run" in container["command"]
    kept = {"name": "JAX_COMPILATION_CACHE_DIR", "value": f"{mounted['mountPath']}/compiled"}
    assert kept in container["env"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topology=v9:4x4",), "--topology=v9:4x4: 'v9' is none of v4, v5p, v5e, v6e"),
        (("--topology=v5p:4x4",), "--topology=v5p:4x4: v5p has 3 dimensions, e.g. v5p:4x4x4"),
        (("--topology=v6e:4xx",), "--topology=v6e:4xx: v6e has 2 dimensions, e.g. v6e:4x4"),
        (("--topology=v5p:3x3x1",), "--topology=v5p:3x3x1: 9 chips do not fill hosts of 4"),
        (("--topology=v5p:4x4x4", "--name=A_b"), "--name=A_b: must be small letters, digits and dashes"),
        (("--topology=v5p:4x4x4", "--workdir=/tmp/x"), "--workdir=/tmp/x: must be under --mount=/mnt/runs"),
    ],
)
def test_what_a_cluster_does_not_have_is_refused(flags, message, monkeypatch, capfd):
    assert message in here("jobset", *JOBSET, *flags, monkeypatch=monkeypatch, capfd=capfd).refusal
