"""Which package may import which: launch -> backend -> shared, and a backend never the other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
TORCH = {"torch", "deepspeed", "vllm", "accelerate", "liger_kernel"}
BACKENDS = {"creason_jax", "creason_torch"}
ABOVE = {"launch", "parity", "configs", "benchmarks", "tests"}  # what stands above the backends
FORBIDDEN = {
    "shared": JAX | TORCH | BACKENDS | ABOVE,
    "creason_jax": TORCH | {"creason_torch"} | ABOVE,
    "creason_torch": JAX | {"creason_jax"} | ABOVE,
    "configs": JAX | TORCH | BACKENDS | (ABOVE - {"configs"}),
    "launch": {"tests", "benchmarks", "configs"},
    "parity": {"tests", "benchmarks", "launch"},
}
MODULES = sorted(path for package in FORBIDDEN for path in (REPOSITORY / package).rglob("*.py"))
# Files with the same role in both backends; docs/architecture.md lists them too.
TWINS = (
    "backend.py",
    "checkpoint/checkpoint.py",
    "learner/learner.py",
    "learner/loss.py",
    "model/logprobs.py",
    "plan/forecast.py",
    "rollout/plain.py",
    "rollout/readback.py",
    "rollout/sampling.py",
)


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere: in functions, under TYPE_CHECKING, or by a name in a string."""
    own = path.relative_to(REPOSITORY).parts[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(own if node.level else (node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.add(str(node.args[0].value).split(".")[0])
    return found


def test_there_is_something_to_check():
    packages = {path.relative_to(REPOSITORY).parts[0] for path in MODULES}
    assert {"shared", "creason_jax", "launch", "configs"} <= packages
    assert len(MODULES) > 40


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_one_way(path):
    crossed = imported(path) & FORBIDDEN[path.relative_to(REPOSITORY).parts[0]]
    assert not crossed, f"{path.relative_to(REPOSITORY)} must not import {', '.join(sorted(crossed))}"


def rooms_of(path: Path) -> set[tuple[str, str]]:
    """Package and room of what a file of ours imports when it is loaded; a file at the top level is a room of its own."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {(parts[0], parts[1]) for parts in (name.split(".") for name in names) if len(parts) > 1}
    return found


def test_no_room_imports_another_that_imports_it():
    arrows: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for path in MODULES:
        package, *rest = path.relative_to(REPOSITORY).with_suffix("").parts
        if package == "shared":
            arrows.setdefault((package, rest[0]), set()).update(rooms_of(path))
    reached = {room: {other for other in others if other in arrows} - {room} for room, others in arrows.items()}
    for _ in arrows:  # as many steps as the longest way can have
        reached = {room: others.union(*(reached[other] for other in others)) for room, others in reached.items()}
    assert sum(map(len, reached.values())) > 50
    assert not [room for room, others in reached.items() if room in others]


def module_name(path: Path) -> str:
    """`shared.grpo.batch`, `shared.grpo` for its `__init__.py`."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def loaded_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a file is loaded: those in functions and under TYPE_CHECKING do not."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from loaded_statements(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            for field in ("body", "orelse", "finalbody"):
                yield from loaded_statements(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from loaded_statements(handler.body)


def files_loaded_by(text: str, known: Collection[str]) -> set[str]:
    """The files, of those `known` by their module's name, that the text of a file imports when it is loaded."""
    loaded = set()
    for node in loaded_statements(ast.parse(text).body):
        if isinstance(node, ast.Import):
            loaded |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            loaded |= {name if name in known else node.module for name in names}
    return loaded & set(known)


def circles(arrows: Mapping[str, set[str]]) -> list[str]:
    """The files that import themselves by way of others."""
    found = []
    for start, first in arrows.items():
        waiting, seen = list(first - {start}), set()
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += arrows[name]
        if start in seen:
            found.append(start)
    return found


def test_no_file_imports_another_that_imports_it():
    texts = {module_name(path): path.read_text(encoding="utf-8") for path in MODULES}
    arrows = {name: files_loaded_by(text, texts) for name, text in texts.items()}
    assert sum(map(len, arrows.values())) > 1_000
    assert circles(arrows) == []


def test_circles_are_found():
    texts = {
        "a.one": "from a import two",
        "a.two": "try:\n    import a.three\nexcept ImportError:\n    pass",
        "a.three": "if TYPE_CHECKING:\n    from a.four import x\nelse:\n    from a.one import y",
        "a.four": "from a.one import z\ndef f():\n    import a.five",
        "a.five": "import a.four",
    }
    arrows = {name: files_loaded_by(text, texts) for name, text in texts.items()}
    assert arrows["a.four"] == {"a.one"} and arrows["a.three"] == {"a.one"}
    assert circles(arrows) == ["a.one", "a.two", "a.three"]


def test_shared_is_a_house_of_few_rooms():
    inside = [path for path in (REPOSITORY / "shared").iterdir() if path.name != "__pycache__"]
    assert len([path for path in inside if path.is_dir()]) <= 16
    assert len([path for path in inside if path.is_file()]) <= 6
    for room in inside:
        if room.is_dir():
            assert ast.get_docstring(ast.parse((room / "__init__.py").read_text())), (
                f"{room.name} does not say what it is"
            )


def public_names(path: Path) -> list[str]:
    """Public functions, classes and methods (`Class.method`) of a file, in their order."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        if isinstance(node, ast.ClassDef):
            names += [f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)]
    return [name for name in names if not any(part.startswith("_") for part in name.split("."))]


@pytest.mark.parametrize("twin", TWINS)
def test_twins_have_the_same_order(twin):
    of_jax, of_torch = (public_names(REPOSITORY / package / twin) for package in ("creason_jax", "creason_torch"))
    common = [name for name in of_jax if name in of_torch]
    assert common and common == [name for name in of_torch if name in of_jax]


def test_the_documented_twins_are_these():
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    paragraph = next(part for part in text.split("\n\n") if part.startswith("These files have one name in both"))
    listed = re.findall(r"`(\S+\.py)`", " ".join(paragraph.split()).partition("side by side:")[2])
    assert sorted(listed) == sorted(TWINS)


def test_imports_are_found_wherever_they_stand(tmp_path):
    path = REPOSITORY / "shared" / "never_written.py"

    class Text:
        def relative_to(self, folder):
            return path.relative_to(folder)

        def read_text(self, encoding):
            return (
                "import torch.nn as nn\nfrom jax import numpy\nfrom . import x\n"
                "def f():\n    import flax\nimportlib.import_module('optax.contrib')\n__import__('vllm')\n"
            )

    assert imported(Text()) == {"torch", "jax", "shared", "flax", "optax", "vllm"}


def loaded_by(modules: str) -> set[str]:
    """Packages in `sys.modules` of a fresh process that imports `modules`."""
    program = f"import {modules}, sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120
    )
    return set(result.stdout.split())


def test_nothing_shared_and_no_launcher_loads_a_framework_before_it_is_chosen():
    # Transformers is among them: it loads torch only when a model class is asked for.
    found = loaded_by(
        "shared.runs.run, shared.training.loop, shared.report.run_page, shared.preparation.prepare, "
        "launch.train, launch.prepare, launch.evaluate, launch.export, launch.report"
    )
    assert "transformers" in found
    assert not found & (JAX | TORCH)


def test_the_jax_backend_loads_no_torch():
    found = loaded_by("creason_jax.backend")
    assert "jax" in found
    assert not found & TORCH
