"""What a rule of ``edgeclip doctor`` looks at in, what it found out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

import msgspec

from edgeclip.devices.catalogue.jetpack import JetPack, release_for_l4t, version_key
from edgeclip.devices.catalogue.profile import DeviceProfile
from edgeclip.devices.machine.machine import Machine
from edgeclip.devices.machine.software import Software

OUR_PYTHON = (3, 10)
_FIRST_L4T = (36,)
Level = Literal["ok", "note", "problem"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        id: of the rule, for programs.
        level: ``ok``; ``note``: works, but slower or less sure than it could; ``problem``: something does not work.
        what: was found.
        why: it matters, and what to know before mending it; empty for what is in order.
        fix: the commands that mend it, in order; empty where none does.
        stops: whether ``edgeclip label`` cannot run at all because of it.
    """

    id: str
    level: Level
    what: str
    why: str = ""
    fix: tuple[str, ...] = ()
    stops: bool = False


class Facts(msgspec.Struct, frozen=True):
    """What rules look at.

    Attributes:
        software: None where a machine's files are looked at elsewhere, and hold no record of it.
        profile: of the device that it is, if known.
    """

    machine: Machine
    software: Software | None
    profile: DeviceProfile | None

    @property
    def release(self) -> JetPack | None:
        """The JetPack release of a Jetson, if it is known."""
        jetson = self.machine.jetson
        return release_for_l4t(jetson.l4t) if jetson and jetson.l4t else None

    @property
    def system_python_too_old(self) -> bool:
        """Whether a Jetson's own Python, to which its TensorRT and OpenCV are bound, is older than edgeclip takes.

        JetPack 6 (Jetson Linux 36) is the first whose Python is not; so a release that is not known is known for this.
        """
        jetson = self.machine.jetson
        if self.release:
            return version_key(self.release.python) < OUR_PYTHON
        return bool(jetson and jetson.l4t and version_key(jetson.l4t) < _FIRST_L4T)

    @property
    def tensorrt_version(self) -> str | None:
        """The TensorRT that an engine would be built with: the one that loads, else JetPack's."""
        loaded = self.software.library("tensorrt").version if self.software else None
        jetson = self.machine.jetson
        return loaded or (jetson.tensorrt.version if jetson and jetson.tensorrt else None)

    def see_system_packages(self) -> tuple[str, ...]:
        """Commands after which this Python, or a new one, sees the packages of the system's; none if it does.

        JetPack's modules are built for the system's Python, so an environment of another one cannot use them: none
        either where that is too old for edgeclip.
        """
        software = self.software
        if software is None or software.system_packages or self.system_python_too_old:
            return ()
        needed = self.release.python if self.release else None
        fits = needed is None or software.python.startswith(f"{needed}.")
        if software.environment and software.system_python and fits:
            return (
                "sed -i 's/^include-system-site-packages *=.*/include-system-site-packages = true/' "
                "\"$(python3 -c 'import sys; print(sys.prefix)')/pyvenv.cfg\"",
            )
        return (
            "/usr/bin/python3 -m venv --system-site-packages ~/edgeclip-env",
            "~/edgeclip-env/bin/pip install 'edgeclip[cuda]'",
        )


Rule: TypeAlias = Callable[[Facts], Iterable[Finding]]
