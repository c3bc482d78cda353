"""Files of answers to be rated."""

from __future__ import annotations

from shared.storage import files

CASES = 12


def replies(path, name, count=CASES):
    rows = [
        {
            "id": f"q{i:02}",
            "question": f"Case {i} <b>&",
            "completion": f"{name} answers {i}",
            "answer": "B" if i % 2 else "",
        }
        for i in range(count)
    ]
    files.write_json_lines(path, rows)
    return path
