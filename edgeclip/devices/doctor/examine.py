"""A root folder in, a report out: what the machine is, what it can use, and what to mend with which command.

To add a check, write a rule beside those of its kind (``host.py``, ``jetson.py``, ``engines.py``, ``cameras.py``):
facts in, findings out; what is absent in the facts gives no finding, or one that says so.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeclip.devices.catalogue.jetpack import JetPack
from edgeclip.devices.catalogue.profile import GpuTold
from edgeclip.devices.doctor import cameras, engines, host, jetson
from edgeclip.devices.doctor.finding import Facts, Finding, Rule
from edgeclip.devices.machine.machine import Machine, match_profile, read_machine
from edgeclip.devices.machine.software import Software, read_software
from edgeclip.devices.machine.tree import Tree, open_tree
from edgeclip.documents import decode_json
from edgeclip.errors import InputError
from edgeclip.version import __version__

RULES: tuple[Rule, ...] = (*host.RULES, *jetson.RULES, *engines.RULES, *cameras.RULES)
# Beside a recorded machine's files: what its Python and its user could use.
RECORD = "edgeclip-doctor.json"
_ORDER = {"problem": 0, "note": 1, "ok": 2}


class Report(msgspec.Struct, frozen=True):
    """What doctor found; what is None, or empty, could not be read or is not there.

    Attributes:
        edgeclip: its version.
        recorded: whether these are another machine's files.
        profile: name of the device profile that fits.
        jetpack: release of a Jetson, if known.
        software: None if the files come without a record of it: then nothing was tried.
        findings: problems first.
        stops: whether something keeps edgeclip from running here; decides the exit code.
        device: what to ask for it by, with the memory that it has: ``agx-orin-32gb-devkit`` of ``agx-orin-64gb``.
    """

    edgeclip: str
    recorded: bool
    machine: Machine
    profile: str | None
    jetpack: JetPack | None
    software: Software | None
    findings: tuple[Finding, ...]
    stops: bool
    device: str | None = None

    def of(self, level: str) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]


def examine(root: Path = Path("/"), *, record: Path | None = None) -> Report:
    """Look at a machine.

    Args:
        root: ``/`` for this machine; a folder or a recorded tar with another's files. Libraries are tried, and the
            user's rights and disk are looked at, on this machine only.
        record: write the files that were read, and what the libraries said, to this tar.

    Raises:
        InputError: ``root`` is neither folder nor recorded tar, or ``record`` cannot be written.
    """
    tree = open_tree(root)
    machine = read_machine(tree)
    if tree.live:
        software: Software | None = read_software(camera.device for camera in machine.cameras)
    else:
        software = _recorded_software(tree)
    names, told = software.gpus() if software else ((), GpuTold())
    facts = Facts(machine, software, match_profile(tree, names, told))
    findings = [finding for rule in RULES for finding in rule(facts)]
    if record:
        tree.save(record, {} if software is None else {RECORD: msgspec.json.encode(software)})
    return Report(
        edgeclip=__version__,
        recorded=not tree.live,
        machine=machine,
        profile=facts.profile.name if facts.profile else None,
        jetpack=facts.release,
        software=software,
        findings=tuple(sorted(findings, key=lambda finding: (not finding.stops, _ORDER[finding.level]))),
        stops=any(finding.stops for finding in findings),
        device=facts.profile.asked_as if facts.profile else None,
    )


def _recorded_software(tree: Tree) -> Software | None:
    text = tree.text(RECORD)
    if text is None:
        return None
    try:
        return decode_json(text, Software, where=RECORD)
    except InputError as error:
        raise InputError(
            f"{RECORD} is not one of this version's records ({error}): record the machine again"
        ) from error
