"""The JSON files of a run: what an older edgekd wrote is read, what a newer one wrote is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd.errors import InputFileError
from edgekd.run.cards.base import SEAL, BrokenSealError, Card, NewerSchemaError
from edgekd.run.cards.evaluation import EvaluationCard, SelectionCard
from edgekd.run.cards.exported import AgreementCard, CalibrationCard, ParityCard
from edgekd.run.cards.ledger import LedgerCard
from edgekd.run.cards.record import CheckpointNotes, DistillNotes, ExportNotes, IngestNotes, Record
from edgekd.run.cards.teacher import InitCard, PixelsCard, TeacherCard
from edgekd.run.directory import RunDir
from edgekd.run.ownership import is_run

OLDER = Path(__file__).with_name("written_by_2c896cf")
"""The JSON files of a toy run, as the commit 2c896cf wrote them: before there were schemas."""
KINDS = (TeacherCard, PixelsCard, SelectionCard, ParityCard, AgreementCard, CalibrationCard, LedgerCard)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_before_schemas_is_read_and_written_again_as_it_was(kind: type[Card]) -> None:
    written = json.loads((OLDER / kind.folder / kind.file).read_text())
    again = kind.load(OLDER / kind.folder).to_json()
    assert again.pop("schema", None) == (None if kind.hashed_into_stage_keys else 1)
    assert (again.pop(kind.seal, "") != "") == bool(kind.seal)
    assert again == written


def test_records_from_before_schemas_have_their_notes() -> None:
    folders: dict[str, type[IngestNotes | DistillNotes | ExportNotes]] = {
        "teacher": IngestNotes,
        "distill": DistillNotes,
        "export": ExportNotes,
    }
    for folder, kind in folders.items():
        record = Record.read(OLDER / folder)
        assert record is not None
        assert record.notes_as(kind).to_json() == record.notes
        assert {"schema": 1, **json.loads((OLDER / folder / "record.json").read_text())} == record.to_json()


def test_files_that_keys_hash_hold_no_number_while_it_is_one(tmp_path: Path) -> None:
    """A number would change the keys of all stages below, and every run would be stale."""
    PixelsCard(mean=None, std=None, class_names=None).write(tmp_path)
    InitCard(student="resnet8", left_random=[]).write(tmp_path)
    assert json.loads((tmp_path / "pixels.json").read_text()) == {"mean": None, "std": None, "class_names": None}
    assert json.loads((tmp_path / "init.json").read_text())["schema"] == 1


@pytest.mark.parametrize("kind", [*KINDS, InitCard, Record, EvaluationCard])
def test_what_a_newer_edgekd_wrote_is_refused_in_one_sentence(kind: type[Card], tmp_path: Path) -> None:
    """Whatever else stands in it: a newer edgekd may have other keys."""
    file = tmp_path / (kind.file or "photos.json")
    file.write_text(json.dumps({"schema": 2, "arch": ["other"], "unheard": "of"}))
    with pytest.raises(NewerSchemaError, match=rf"^{file} has schema 2, .* a newer edgekd wrote it[^.]*\.$") as caught:
        kind.load_file(file)
    assert caught.value.exit_code == 4


def test_a_record_of_a_newer_edgekd_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"schema": 7}')
    with pytest.raises(NewerSchemaError, match="schema 7"):
        Record.read(tmp_path)
    (tmp_path / "record.json").write_text('{"schema": 1}')
    assert Record.read(tmp_path) is None


HOSTILE = ["", "{", "[]", "7", "null", "{}", '{"arch": NaN}', '{"arch": "\\ud800"}', "\0", "[" * 10**5, '{"a":' * 10**5]


@pytest.mark.parametrize("kind", [TeacherCard, AgreementCard, LedgerCard])
@pytest.mark.parametrize(
    "content", [*(text.encode() for text in HOSTILE), b"\xff", b'{"schema": "1"}', b'{"schema": 0}']
)
def test_what_is_torn_or_hostile_is_one_clear_message(kind: type[Card], content: bytes, tmp_path: Path) -> None:
    (tmp_path / kind.file).write_bytes(content)
    with pytest.raises(
        InputFileError, match=r"json (cannot be read as JSON|does not hold what belongs there) \(.+\)\.$"
    ) as caught:
        kind.load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_name_of_a_file_reaches_no_terminal_as_a_command(tmp_path: Path) -> None:
    (tmp_path / "parity.json").write_text(json.dumps({"\x1b[2J" + "x" * 10**4: 7}))
    with pytest.raises(InputFileError) as caught:
        ParityCard.load(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_number_stands_for_no_text_and_true_for_no_number(tmp_path: Path) -> None:
    honest = json.loads((OLDER / "teacher" / "teacher.json").read_text())
    for lie in ({"arch": 7}, {"classes": True}, {"classes": "4"}, {"input_shape": [1, 8]}, {"probe": None}):
        (tmp_path / "teacher.json").write_text(json.dumps({**honest, **lie}))
        with pytest.raises(InputFileError, match=next(iter(lie))):
            TeacherCard.load(tmp_path)


def test_notes_of_another_stage_are_a_clear_error() -> None:
    record = Record.read(OLDER / "export")
    assert record is not None
    with pytest.raises(InputFileError, match=r"record.json of export .* \(notes\.events_bytes\)"):
        record.notes_as(CheckpointNotes)


def test_the_ledger_keeps_what_another_edgekd_entered(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    LedgerCard.blank().write(tmp_path)
    held = json.loads(run.ledger_file.read_text())
    del held[SEAL]
    run.ledger_file.write_text(json.dumps({**held, "unheard": {"of": [1]}}))
    run.note_file(Path("teacher.pt"), "abc")
    now = json.loads(run.ledger_file.read_text())
    assert now.pop(SEAL)
    assert now == {**held, "unheard": {"of": [1]}, "files_read": {"teacher.pt": "abc"}}


def test_a_digit_of_the_ledger_that_fell_over_is_told_with_the_way_on(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.note_file(Path("teacher.pt"), "abc1")
    run.ledger().with_fields(real_images_read=70).write(tmp_path)
    assert run.ledger().model_extra == {}
    changed = run.ledger_file.read_text().replace(": 70", ": 10")
    run.ledger_file.write_text(changed)
    with pytest.raises(BrokenSealError, match=r"run\.json is damaged, or was changed by hand.* or take out that key"):
        run.note_file(Path("teacher.pt"), "abc2")
    assert is_run(tmp_path), "of edgekd it is all the same"
    run.ledger_file.write_text(json.dumps({k: v for k, v in json.loads(changed).items() if k != SEAL}))
    assert run.ledger().real_images_read == 10
