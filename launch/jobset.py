"""Print a Kubernetes JobSet that trains on TPU slices of GKE; you apply it with kubectl.

    creason jobset --config=configs/phi4_sepsis.py --topology=v5p:4x4x4 --image=REGISTRY/creason:1 \\
        --claim=creason-work --workdir=/mnt/runs/phi4 > jobset.yaml
    creason jobset --config=configs/phi4_sepsis.py --topology=v5e:4x8 --slices=2 --train=--config.jax.mesh_data=2 \\
        --image=REGISTRY/creason:1 --claim=creason-work --workdir=/mnt/runs/phi4 > jobset.yaml
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any, NamedTuple

import yaml
from absl import flags

from launch import app
from shared.errors import InputError

FLAGS = flags.FLAGS
STOPPED = 75  # exit code of a run that was asked to stop: not a success, so JobSet starts it again
PORTS = {"tpu": 8471, "megascale": 8080, "coordinator": 8482}


class Accelerator(NamedTuple):
    """A TPU generation on GKE."""

    label: str  # GKE's name
    dimensions: int  # of its topologies
    chips: int  # on each host of a slice with several hosts
    most_on_one_host: int  # chips; a slice of up to so many is a single host


ACCELERATORS = {
    "v4": Accelerator("tpu-v4-podslice", 3, 4, 4),
    "v5p": Accelerator("tpu-v5p-slice", 3, 4, 4),
    "v5e": Accelerator("tpu-v5-lite-podslice", 2, 4, 8),
    "v6e": Accelerator("tpu-v6e-slice", 2, 4, 8),
}


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_string("config", None, "Path of the config file inside the image.", required=True)
    flags.DEFINE_string(
        "topology", None, "The slice: TPU generation and chips, e.g. v5p:4x4x4 or v6e:4x4.", required=True
    )
    flags.DEFINE_string("image", None, "Container image with this repository as its working directory.", required=True)
    flags.DEFINE_string("claim", None, "PersistentVolumeClaim (ReadWriteMany) that all hosts mount.", required=True)
    flags.DEFINE_string("mount", "/mnt/runs", "Folder at which the claim is mounted.")
    flags.DEFINE_string("workdir", "/mnt/runs/run", "Work directory of the run, inside --mount.")
    flags.DEFINE_string("name", "creason", "Name of the JobSet, and of its headless service.")
    flags.DEFINE_integer(
        "slices", 1, "Slices that train together; give --train=--config.jax.mesh_data=SLICES.", lower_bound=1
    )
    flags.DEFINE_multi_string("train", [], "A further flag for `creason train`; may come several times.")
    flags.DEFINE_integer(
        "max_restarts", 100, "How often all processes are started again after one has ended.", lower_bound=0
    )
    flags.DEFINE_integer(
        "grace_seconds", 300, "Seconds that a process has to end after it was asked to stop.", lower_bound=1
    )


def main() -> None:
    """Print the manifest. Raises InputError for a topology or a name that GKE would not accept."""
    yaml.safe_dump(manifest(), sys.stdout, sort_keys=False)


def manifest() -> dict[str, Any]:
    """The JobSet that the flags describe."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?", FLAGS.name):
        raise InputError(f"--name={FLAGS.name}: must be small letters, digits and dashes, at most 42")
    if not f"{FLAGS.workdir}/".startswith(f"{FLAGS.mount.rstrip('/')}/"):
        raise InputError(f"--workdir={FLAGS.workdir}: must be under --mount={FLAGS.mount}, which all hosts see")
    accelerator, topology, hosts, chips = slice_of(FLAGS.topology)
    command = ["python", "-m", "launch.train", f"--config={FLAGS.config}", f"--workdir={FLAGS.workdir}"]
    container = {
        "name": "train",
        "image": FLAGS.image,
        "command": [*command, f"--stopped_exit_code={STOPPED}", *FLAGS.train],
        "env": [
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "JAX_COMPILATION_CACHE_DIR", "value": f"{FLAGS.mount.rstrip('/')}/compiled"},
        ],
        "ports": [{"name": name, "containerPort": port} for name, port in PORTS.items()],
        "resources": {part: {"google.com/tpu": chips} for part in ("requests", "limits")},
        "volumeMounts": [{"name": "work", "mountPath": FLAGS.mount}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": FLAGS.grace_seconds,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": topology,
        },
        "containers": [container],
        "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": FLAGS.claim}}],
    }
    job = {
        "backoffLimit": 0,  # when one process ends, JobSet starts all of them again
        "completions": hosts,
        "parallelism": hosts,
        "completionMode": "Indexed",
        "template": {"spec": pod},
    }
    # A slice is one node pool, so all pods of a job must be on the same node pool.
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": FLAGS.name, "annotations": exclusive},
        "spec": {
            "failurePolicy": {"maxRestarts": FLAGS.max_restarts},
            # JobSet makes the headless service that gives the pods their host names.
            "network": {"enableDNSHostnames": True, "subdomain": FLAGS.name, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": "slice", "replicas": FLAGS.slices, "template": {"spec": job}}],
        },
    }


def slice_of(text: str) -> tuple[str, str, int, int]:
    """For text such as `v5p:4x4x4`: GKE's names of accelerator and topology, hosts of the slice, chips on each host.

    Raises InputError for an unknown generation, and for a shape that it does not have.
    """
    generation, _, topology = text.partition(":")
    if generation not in ACCELERATORS:
        raise InputError(f"--topology={text}: {generation!r} is none of {', '.join(ACCELERATORS)}")
    accelerator = ACCELERATORS[generation]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology) or topology.count("x") != accelerator.dimensions - 1:
        example = "x".join(["4"] * accelerator.dimensions)
        raise InputError(
            f"--topology={text}: {generation} has {accelerator.dimensions} dimensions, e.g. {generation}:{example}"
        )
    chips = math.prod(int(size) for size in topology.split("x"))
    if chips <= accelerator.most_on_one_host:
        return accelerator.label, topology, 1, chips
    if chips % accelerator.chips:
        raise InputError(f"--topology={text}: {chips} chips do not fill hosts of {accelerator.chips}")
    return accelerator.label, topology, chips // accelerator.chips, accelerator.chips


if __name__ == "__main__":
    define_flags()
    app.run(main, expand_home=False)  # its paths are those of the image
