"""The golden folder itself: complete here, replaceable by another, and nothing of it in the tests' code."""

from __future__ import annotations

import pytest

from tests.support import golden_folder

FILES = {
    "grpo_loss": ("cases.json", "cases.npz"),
    "registry": (
        "aki_label_cases.jsonl.gz", "chat_cases.jsonl.gz", "chat_templates.json.gz", "helper_cases.jsonl.gz",
        "reward_cases.jsonl.gz", "serializer_cases.jsonl.gz", "simplify_cases.jsonl.gz", "value_choices_registry.jsonl.gz",
        "value_choices_synthetic.jsonl.gz", "sepsis/raw/data.xlsx", "stroke/raw/nihss.xlsx", "aki/raw/data_processed.csv.gz",
    ),
    "mimic3": ("input/CHARTEVENTS.csv.gz", "cohort/MIMICtable.csv.gz", "knn/knn_expected.csv.gz", "questions/meta.json"),
}  # fmt: skip
SETS = ("all_victims", "cut0", "nochoice3", "oversample", "plain")


def test_the_repositorys_own_folder_is_whole():
    files = [f"{part}/{name}" for part, names in FILES.items() for name in names]
    files += [f"registry/{name}/questions_{kind}.jsonl.gz" for name in ("sepsis", "stroke", "aki") for kind in SETS]
    assert [name for name in files if not (golden_folder.OWN / name).is_file()] == []
    assert all((golden_folder.OWN / part / "README.md").is_file() for part in FILES)


def test_another_folder_can_be_named(tmp_path):
    assert golden_folder.folder({}) == golden_folder.folder({"CREASON_GOLDEN": ""}) == golden_folder.OWN
    assert golden_folder.folder({"CREASON_GOLDEN": str(tmp_path)}) == tmp_path
    with pytest.raises(FileNotFoundError, match=r"CREASON_GOLDEN: there is no folder .*nowhere"):
        golden_folder.folder({"CREASON_GOLDEN": str(tmp_path / "nowhere")})


def test_compressed_files_are_binary_for_git():
    """Else a checkout with other line ends would change them."""
    kept = {path.suffix for path in golden_folder.OWN.rglob("*.*")} - {".md", ".json"}
    told = (golden_folder.OWN.parents[1] / ".gitattributes").read_text().splitlines()
    assert {f"*{suffix} binary" for suffix in kept} <= set(told)
