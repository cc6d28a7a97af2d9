"""What is wrong with the installed runtimes of a machine."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.agent.device.environment import Environment


@dataclass(frozen=True)
class Conflict:
    """Something wrong with the installed runtimes, and the commands that mend it."""

    message: str
    commands: tuple[str, ...]


def runtime_conflict(environment: Environment) -> Conflict | None:
    """Return what is wrong when several builds of onnxruntime are installed over each other.

    All builds unpack into the same folder, so the last one installed has overwritten files of the others, and
    removing one of them breaks the rest: all must go before one comes back.
    """
    packages = environment.runtime_packages
    if len(packages) < 2:
        return None
    names = sorted(packages)
    listed = " and ".join(f"{name} {packages[name]}" for name in names)
    package = "onnxruntime-gpu" if environment.gpus else "onnxruntime"
    keep = package if package in packages else names[0]
    pip = f"{environment.executable} -m pip"
    return Conflict(
        f"{listed} are installed over each other; their files are mixed and a provider may be missing.",
        (f"{pip} uninstall -y {' '.join(names)}", f"{pip} install {keep}=={packages[keep]}"),
    )
