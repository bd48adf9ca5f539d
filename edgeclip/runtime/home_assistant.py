"""Topics and labels in; Home Assistant's MQTT discovery payloads out (home-assistant.io/integrations/mqtt)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from edgeclip import __version__
from edgeclip.runtime.slug import slugs

_PREFIX = "homeassistant"  # what Home Assistant listens to unless told otherwise
_MOST_LABELS = 50  # of a table; more binary sensors than that help nobody


def discovery(base: str, states: Mapping[str, str], labels: Sequence[str], *, model: str) -> dict[str, bytes]:
    """Topic → retained payload: a sensor of the label for each source, and a binary sensor for each label present.

    Args:
        base: base topic; its ``status`` says whether the entities are available.
        states: name of a source → its state topic.
        labels: of the first table; more than 50 get no binary sensors.
        model: for people.
    """
    device_id = slugs([f"edgeclip-{base.replace('/', '-')}"]).popitem()[1]
    device = {"identifiers": [device_id], "name": base, "manufacturer": "edgeclip", "model": model}
    sources, own = slugs(states), slugs(labels)
    payloads = {}

    def add(kind: str, source: str, item: str, name: str, **more: object) -> None:
        unique = f"{device_id}-{sources[source]}-{item}"
        payloads[f"{_PREFIX}/{kind}/{unique.replace('.', '_')}/config"] = json.dumps(
            {
                "name": f"{source} {name}",
                "unique_id": unique,
                "state_topic": states[source],
                "availability_topic": f"{base}/status",
                "device": device,
                "origin": {"name": "edgeclip", "sw_version": __version__},
                **more,
            },
            ensure_ascii=False,
        ).encode()

    for source, topic in states.items():
        add("sensor", source, "label", "label", value_template="{{ value_json.label }}", json_attributes_topic=topic)
        for label in labels if len(labels) <= _MOST_LABELS else ():
            quoted = json.dumps(label, ensure_ascii=False)  # a JSON string is a string for Jinja too
            template = f"{{{{ 'ON' if {quoted} in value_json.present else 'OFF' }}}}"
            add("binary_sensor", source, f"present-{own[label]}", label, value_template=template)
    return payloads
