"""Write one page with every number of a run and the file it comes from; reads artefacts, changes none."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from edgekd import console
from edgekd.bench import comparing, tables
from edgekd.bench.results import ENVIRONMENT, RESULTS, SAMPLES, Results, read_environment, read_results, read_samples
from edgekd.bench.rows import Row, SkippedRow
from edgekd.models import artefacts
from edgekd.run import curve, plots
from edgekd.run.cards.base import Card
from edgekd.run.cards.evaluation import EvaluationCard, SelectionCard
from edgekd.run.cards.events import AccuracyEvent, TrainEvent
from edgekd.run.cards.exported import AgreementCard, ParityCard
from edgekd.run.cards.ledger import LedgerCard
from edgekd.run.cards.record import Record, hash_as_recorded
from edgekd.run.cards.report import ArtefactPart, DevicePart, DistillationCard, ReportCard
from edgekd.run.cards.teacher import TeacherCard
from edgekd.run.directory import RunDir
from edgekd.run.files import digest, write_text
from edgekd.run.ownership import REPORT_PAGE
from edgekd.run.unreadable import UnreadableFiles
from edgekd.schema import to_json
from edgekd.text import counted, visible

C = TypeVar("C", bound=Card)


def write_report(run_dir: RunDir) -> ReportCard:
    """Publish report/report.json and report/report.html; return what is in the first."""
    left_out = UnreadableFiles()
    summary = collect(run_dir, left_out)
    written = page(run_dir, summary, left_out)
    with run_dir.publish(ReportCard.folder) as (folder, record):
        summary.write(folder)
        write_text(folder / REPORT_PAGE, written)
        key = digest(summary.to_json())
        record |= {"stage": "report", "version": 1, "key": key, "recipe_slice": {}, "inputs": {}}
    return summary


def _there(kind: type[C], folder: Path) -> C | None:
    """A card, if there is one; what a record knows of must be as it says, for a digit that fell over is one, too."""
    if not (folder / kind.file).is_file():
        return None
    card = kind.load(folder)
    hash_as_recorded(folder / kind.file)
    return card


def _distillation(run_dir: RunDir) -> DistillationCard | None:
    if not run_dir.stage("distill").exists():
        return None
    run_dir.require_events()
    return curve.summary(run_dir)


def collect(run_dir: RunDir, left_out: UnreadableFiles | None = None) -> ReportCard:
    """Gather what the stages wrote; what does not exist yet, or cannot be read, is None.

    `left_out` is told what cannot be read, as are people; its sentences stand in the report under that name.
    """
    left_out = left_out or UnreadableFiles()
    export = run_dir.stage("export")
    ledger = left_out.unless(_there, LedgerCard, run_dir.path)
    bench = left_out.unless(_bench, run_dir.stage("bench") / "local")
    agreement = left_out.unless(_there, AgreementCard, export)
    files = sorted(export.glob("*.onnx"), key=lambda path: artefacts.precision_rank(path.name))
    readable_sizes = {path.name: left_out.unless(_size_bytes, path) for path in files}
    sizes = {name: size for name, size in readable_sizes.items() if size is not None}
    evaluations = comparing.evaluations(run_dir)
    rows = bench.results if bench is not None and _measured_these(run_dir) else None
    verdict = None if rows is None else left_out.unless(_verdict, rows, run_dir, left_out)
    return ReportCard(
        run=run_dir.name,
        data_free=run_dir.data_free(),
        real_images_read=None if ledger is None else ledger.real_images_read,
        teacher=left_out.unless(_there, TeacherCard, run_dir.stage("teacher")),
        distillation=left_out.unless(_distillation, run_dir),
        selection=left_out.unless(_there, SelectionCard, run_dir.stage("select")),
        size_bytes=sizes,
        parity=left_out.unless(_there, ParityCard, export),
        agreement=None if agreement is None else agreement.chain,
        latency=to_json(rows),
        verdict=verdict,
        devices=_devices(run_dir, left_out),
        warnings=[] if bench is None else list(bench.warnings),
        evaluations={file.stem: left_out.unless(EvaluationCard.load_file, file) for file in evaluations},
        artefacts=_artefacts(run_dir, sizes, rows or (), left_out),
        left_out=left_out.sentences,
    )


def _size_bytes(file: Path) -> int:
    return file.stat().st_size


def _bench(folder: Path) -> Results | None:
    file = folder / RESULTS
    if not file.is_file():
        return None
    results = read_results(file)
    hash_as_recorded(file)
    return results


def _verdict(rows: Sequence[Row | SkippedRow], run_dir: RunDir, left_out: UnreadableFiles) -> str | None:
    return next(iter(comparing.verdicts(rows, run_dir, left_out).values()), None)


def _devices(run_dir: RunDir, left_out: UnreadableFiles) -> dict[str, DevicePart]:
    """What was measured elsewhere, by target, where it was of the files that are exported now."""
    parts = {folder.name: left_out.unless(_device, run_dir, folder, left_out) for folder in comparing.targets(run_dir)}
    return {name: results for name, results in parts.items() if results is not None}


def _device(run_dir: RunDir, folder: Path, left_out: UnreadableFiles) -> DevicePart | None:
    measured = _bench(folder) if folder.name != "local" and _measured_these(run_dir, folder) else None
    if measured is None:
        return None
    file = folder / ENVIRONMENT
    environment = read_environment(file) if file.is_file() else None
    names = ("board", "cpu_model", "gpus", "tensorrt", "jetson")
    machine = {name: to_json(getattr(environment, name, None)) for name in names}
    verdicts = comparing.verdicts(measured.results, run_dir, left_out)
    facts = {"numerics": measured.numerics, "energy": measured.energy}
    typed = {name: [*values] for name, values in facts.items() if values is not None}
    return DevicePart.model_validate({**to_json(measured), **typed, "verdicts": verdicts, "machine": machine})


def _measured_these(run_dir: RunDir, folder: Path | None = None) -> bool:
    """Whether the latencies are of the files that are exported now: here of all, on a device of what it ran."""
    bench, export = Record.read(folder or run_dir.stage("bench") / "local"), Record.read(run_dir.stage("export"))
    if bench is None or export is None:
        return False
    exported = {f"export/{k}": v for k, v in export.outputs.items() if k.endswith(".onnx")}
    measured = {k: v for k, v in bench.inputs.items() if k.endswith(".onnx")}
    if folder is None:
        return exported.items() <= measured.items()
    return bool(measured) and measured.items() <= exported.items()


def _artefacts(
    run_dir: RunDir, sizes: dict[str, int], latency: Sequence[Row | SkippedRow], left_out: UnreadableFiles
) -> list[ArtefactPart]:
    """One row per artefact: accuracy, size, latency, and how often it leaves the file before it in the chain."""
    accuracy = left_out.unless(comparing.accuracies, run_dir) or {}
    shares = left_out.unless(comparing.shares, run_dir) or {}
    names = ["teacher", "student", *sizes] if accuracy or sizes else []
    return [
        _artefact(name, accuracy.get(name), sizes.get(name), shares.get(name), _row(name, latency)) for name in names
    ]


def _row(artefact: str, latency: Sequence[Row | SkippedRow]) -> Row | SkippedRow | None:
    return next((row for row in latency if row.artefact == artefact), None)


def _artefact(
    name: str, accuracy: float | None, size_bytes: int | None, share: float | None, row: Row | SkippedRow | None
) -> ArtefactPart:
    return ArtefactPart(
        artefact=name,
        accuracy=accuracy,
        size_bytes=size_bytes,
        synthetic_agreement=share,
        p50_ms=row.p50_ms if isinstance(row, Row) else None,
        p99_ms=row.p99_ms if isinstance(row, Row) else None,
        note="" if row is None else row.skipped if isinstance(row, SkippedRow) else row.note or "",
    )


def _cell(value: float | None, form: str, scale: float = 1.0) -> str:
    return "–" if value is None else form.format(value * scale)


COLUMNS = ("artefact", "accuracy", "agreement (synthetic)", "size kB", "p50 ms", "p99 ms", "note")


def artefact_rows(summary: ReportCard) -> list[tuple[str, ...]]:
    """Return the table of artefacts as text, a row each."""
    return [
        (
            row.artefact,
            _cell(row.accuracy, "{:.2f} %", 100),
            _cell(row.synthetic_agreement, "{:.2f} %", 100),
            _cell(row.size_bytes, "{:.0f}", 1e-3),
            _cell(row.p50_ms, "{:.3f}"),
            _cell(row.p99_ms, "{:.3f}"),
            row.note,
        )
        for row in summary.artefacts
    ]


def print_summary(summary: ReportCard) -> None:
    """Print the table of artefacts, what its accuracies were measured on, and what speaks against them."""
    console.print_table(COLUMNS, artefact_rows(summary))
    evaluation = _newest_evaluation(summary)
    if evaluation is not None:
        console.say(_measured_on(evaluation))
        for warning in evaluation.warnings:
            console.warn(warning)


def _newest_evaluation(summary: ReportCard) -> EvaluationCard | None:
    """The evaluation that the accuracies are from, where there are any."""
    shown = any(row.accuracy is not None for row in summary.artefacts)
    return next(reversed(summary.evaluations.values()), None) if shown else None


def _measured_on(evaluation: EvaluationCard) -> str:
    measured = sum(part.images > 0 for part in evaluation.classes)
    some = f" of {measured} of {len(evaluation.classes)} classes" if measured < len(evaluation.classes) else ""
    return (
        f"accuracy is on {counted(evaluation.images, 'image')}{some} in {evaluation.data or evaluation.images_folder}"
    )


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}th,td{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}figure{margin:1em 0}code{background:#f4f4f4;padding:0 .2em}"""


def page(run_dir: RunDir, summary: ReportCard, left_out: UnreadableFiles | None = None) -> str:
    """Return report.html: self-contained, every section with the file its numbers come from."""
    count = summary.real_images_read
    origin = f"Made from no real image; real images read for numbers only: {count}"
    if not summary.data_free:
        origin = f"Made from REAL IMAGES: NOT data-free; real images read in all: {count}"
    parts = [f"<h1>{_html(summary.run)}</h1>", f"<p>{origin} (<code>run.json</code>).</p>"]
    if summary.artefacts:
        files = "<code>eval/</code>, <code>export/agreement.json</code>, <code>bench/local/results.json</code>"
        parts += ["<h2>Artefacts</h2>", _html_table(COLUMNS, artefact_rows(summary)), f"<p>From {files}.</p>"]
    evaluation = _newest_evaluation(summary)
    if evaluation is not None:
        parts.append(f"<p>The {_html(_measured_on(evaluation))}.</p>")
        parts += [f"<p>Warning: {_html(warning)}</p>" for warning in evaluation.warnings]
    if summary.verdict:
        parts.append(f"<p><b>{_html(summary.verdict)}</b></p>")
    parts += [f"<p>Warning: {_html(warning)}</p>" for warning in summary.warnings]
    for target, measured in summary.devices.items():
        parts += _device_section(target, measured)
    for title, picture, source in pictures(run_dir, left_out):
        parts += [
            f"<h2>{_html(title)}</h2>",
            f"<figure>{picture}</figure>",
            f"<p>From <code>{_html(source)}</code>.</p>",
        ]
    if summary.selection is not None:
        chosen = summary.selection
        parts.append(f"<h2>Selection</h2><p>{_html(chosen.chosen)}: {_html(chosen.reason)}.</p>")
        rows = [(candidate.name, f"{candidate.agreement:.2%}") for candidate in chosen.candidates]
        parts.append(_html_table(("candidate", "synthetic agreement (not accuracy)"), rows))
    parts += [f"<p>{_html(sentence)}</p>" for sentence in summary.left_out]
    title = _html(summary.run)
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return head + "\n".join(parts) + "</html>\n"


def _device_section(target: str, measured: DevicePart) -> list[str]:
    folder = f"bench/{target}"
    latencies = tables.latency_rows(comparing.rows_of(measured.results))
    parts = [f"<h2>On {_html(target)}</h2>", _html_table(tables.LATENCY_HEADER, latencies)]
    parts += [f"<p><b>{_html(sentence)}</b></p>" for sentence in measured.verdicts.values()]
    parts += [f"<p>Warning: {_html(warning)}</p>" for warning in measured.warnings]
    numerics, energy = tables.numerics_rows(measured.numerics), tables.energy_rows(measured.energy)
    for columns, rows in ((tables.NUMERICS_HEADER, numerics), (tables.ENERGY_HEADER, energy)):
        parts += [_html_table(columns, rows)] if rows else []
    if measured.energy_note:
        parts.append(f"<p>Energy: {_html(measured.energy_note)}</p>")
    facts = [(name, json.dumps(value)) for name, value in measured.machine.items() if value]
    parts += [_html_table(("machine", ""), facts)] if facts else []
    return [*parts, f"<p>From <code>{_html(folder)}/</code>.</p>"]


def pictures(run_dir: RunDir, left_out: UnreadableFiles | None = None) -> Iterator[tuple[str, str, str]]:
    """Yield (title, SVG, source file) of every picture whose data is there and can be read."""
    left_out = left_out or UnreadableFiles()
    yield from left_out.unless(_accuracy_picture, run_dir) or []
    yield from left_out.unless(_loss_picture, run_dir) or []
    for folder in comparing.targets(run_dir):
        yield from left_out.unless(_latency_pictures, folder) or []


def _accuracy_picture(run_dir: RunDir) -> list[tuple[str, str, str]]:
    run_dir.require_events()
    points = curve.thinned(run_dir.logged(AccuracyEvent), ("raw", "ema"))
    return [("Accuracy while distilling", plots.accuracy(points), run_dir.events_file.name)] if points else []


def _loss_picture(run_dir: RunDir) -> list[tuple[str, str, str]]:
    run_dir.require_events()
    points = curve.thinned(run_dir.logged(TrainEvent), plots.LOSSES)
    return [("Distillation loss and agreement", plots.losses(points), run_dir.events_file.name)] if points else []


def _latency_pictures(folder: Path) -> list[tuple[str, str, str]]:
    where, source = "" if folder.name == "local" else f" on {folder.name}", f"bench/{folder.name}/samples.json"
    images_html = []
    for comparison in read_samples(folder / SAMPLES):
        if comparison.samples_ms:
            shape = f"batch {comparison.settings.batch}, threads {comparison.settings.threads}"
            images_html.append((f"Latency{where}, {shape}", plots.latencies(comparison.samples_ms), source))
    return images_html


def _html(words: str) -> str:
    """Text for a page: neither markup nor a terminal's control characters, should one print the page."""
    return html.escape(visible(words))


def _html_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{_html(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_html(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
