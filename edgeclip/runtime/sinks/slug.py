"""Names for people in; names fit for files, topics and identifiers out, one each."""

from __future__ import annotations

import re
from collections.abc import Iterable


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Each name with what stands for it: letters, digits, ``.``, ``_`` and ``-`` only, never empty, never twice.

    >>> slugs(["yard", "front door", "front/door"])
    {'yard': 'yard', 'front door': 'front_door', 'front/door': 'front_door_2'}
    """
    made: dict[str, str] = {}
    used: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("_.") or "unnamed"
        own, count = plain, 1
        while own in used:
            count += 1
            own = f"{plain}_{count}"
        used.add(own)
        made[name] = own
    return made
