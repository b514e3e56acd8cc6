"""What the PACS worker keeps, and where."""

from pathlib import Path

from tasks.pacs import STATE_FILE, beside


def test_each_state_file_has_its_own_journal() -> None:
    assert beside(STATE_FILE, ".found") == Path(".checkpoints/pacs.found")  # as in 0.7.0
    names = ("pacs.json", "pacs.site1.json", "pacs.site2.json", "pacs.1", "pacs.2")
    assert len({beside(Path(name), ".found") for name in names}) == len(names)
