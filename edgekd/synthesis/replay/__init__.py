"""Replay: where the student's old synthetic knowledge comes from, one source a file."""

from edgekd.synthesis.replay.bank import BankReplay
from edgekd.synthesis.replay.base import Replay
from edgekd.synthesis.replay.ema_generator import EmaGeneratorReplay
from edgekd.synthesis.replay.vae import GATE_DECAY, VaeReplay

__all__ = ["GATE_DECAY", "SOURCES", "BankReplay", "EmaGeneratorReplay", "Replay", "VaeReplay"]

SOURCES: dict[str, type[Replay]] = {
    "none": Replay,
    "bank": BankReplay,
    "ema-generator": EmaGeneratorReplay,
    "vae": VaeReplay,
}
"""The sources by the name that `method.replay.source` gives them."""
