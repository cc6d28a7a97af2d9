"""`edgekd report`: one page with every number of a run."""

from __future__ import annotations

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb


@verb("edgekd report", "edgekd report my-run --json")
def report(run: flags.RunArgument = "", json: flags.Json = False) -> None:
    """Write one page with every number of a run and where it comes from."""
    from edgekd.cli import lines, targets
    from edgekd.stages.catalog import INGEST

    run_dir = targets.find_run(run, INGEST)  # without its lock: it may be busy
    from edgekd.stages.report import print_summary, write_report

    summary = write_report(run_dir)
    if json:
        console.print_json(summary.to_json())
    else:
        print_summary(summary)
    headline = lines.data_free_warning(summary.data_free) + (summary.verdict or "no latency measured yet")
    console.closing(
        f"{run_dir.stage('report')}/report.html", headline, f"edgekd status {targets.run_argument(run_dir)}"
    )
