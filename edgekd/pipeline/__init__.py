"""The order of the stages: what has to run and why, which recipe a run has, and what may be taken from it again."""

from edgekd.pipeline.adoption import adopt, newest_run, open_recipe
from edgekd.pipeline.advance import advance
from edgekd.pipeline.prune import prune
from edgekd.pipeline.run_status import RunStatus

__all__ = ["RunStatus", "adopt", "advance", "newest_run", "open_recipe", "prune"]
