"""States, events, discovery and the last will as a subscriber of a real mosquitto sees them, also when it dies."""

from __future__ import annotations

import json
import logging
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeclip import PromptTable, make_classes
from edgeclip.errors import InputError
from edgeclip.prompts import unit_rows
from edgeclip.runtime.records import Scored, View
from edgeclip.runtime.sinks.base import SinkThread
from edgeclip.runtime.sinks.files import JsonlSink
from edgeclip.runtime.sinks.mqtt import MqttAddress, MqttSink, discovery
from tests.conftest import WIDTH
from tests.mqtt_broker import Broker, listening
from tests.sink_runs import Named, event, happens, make_run, pixels, push, record


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    own = Broker(tmp_path)
    own.start()
    yield own
    own.kill()


def url(broker: Broker, base: str = "home/cams") -> str:
    return f"mqtt://127.0.0.1:{broker.port}/{base}"


def test_an_address_is_taken_apart() -> None:
    address = MqttAddress.parse("mqtts://me:p%40s%2Fs@broker.lan/a/b/")
    assert (address.host, address.port, address.base, address.tls) == ("broker.lan", 8883, "a/b", True)
    assert (address.user, address.password) == ("me", "p@s/s")
    assert MqttAddress.parse("mqtt://h").base == "edgeclip"
    assert "p@s" not in f"{address} {address!r}"


def test_a_state_is_retained_and_published_on_change_only(tiny_bundle: Path, broker: Broker) -> None:
    run = make_run(tiny_bundle, Named("front door"))
    topic = "home/cams/front_door/state"
    with listening(broker.port) as heard:
        thread = SinkThread(MqttSink(url(broker), interval_s=0.0), run)
        assert happens(lambda: heard.payloads("home/cams/status") == ["online"])
        for index in range(50):
            thread.put(record(index, present=["cat"]), pixels(index))
        for index in range(50, 60):
            thread.put(record(index, "rocket", 0.5, present=["cat"]), pixels(index))
        assert happens(lambda: len(heard.payloads(topic)) == 2)
        with listening(broker.port) as later:
            assert happens(lambda: bool(later.payloads(topic)))
            assert [(name, kept) for name, _, kept in later.messages if name == topic] == [(topic, True)]
            assert later.payloads(topic)[0]["label"] == "rocket"
        thread.close(complete=True)
        assert happens(lambda: heard.payloads("home/cams/status")[-1] == "offline")
    assert heard.payloads(topic) == [
        {"label": "cat", "score": 0.75, "present": ["cat"], "frame": 0, "time_s": 0.0},
        {"label": "rocket", "score": 0.5, "present": ["cat"], "frame": 50, "time_s": 2.5},
    ]
    assert run.account.sink_failed == {}


def test_states_keep_their_distance_and_the_last_one_is_said(tiny_bundle: Path, broker: Broker) -> None:
    run = make_run(tiny_bundle)
    with listening(broker.port) as heard:
        thread = SinkThread(MqttSink(url(broker), interval_s=3600.0), run)
        assert happens(lambda: heard.payloads("home/cams/status") == ["online"])
        for index in range(100):
            thread.put(record(index, "cat" if index % 2 else "rocket"), pixels(index))
        thread.close(complete=True)
        assert happens(lambda: heard.payloads("home/cams/status")[-1] == "offline")
    assert [state["frame"] for state in heard.payloads("home/cams/yard/state")] == [0, 99]


def test_events_are_not_retained_and_views_are_in_the_state(tiny_bundle: Path, broker: Broker) -> None:
    run = make_run(tiny_bundle, Named("yard"), Named("street"))
    views = [View("things", region, "cat", 0.75, [Scored("cat", 0.75)], ["cat"]) for region in ("left", "right")]
    with listening(broker.port) as heard:
        thread = SinkThread(MqttSink(url(broker)), run)
        assert happens(lambda: heard.payloads("home/cams/status") == ["online"])
        thread.put(record(3, source="street", views=views, events=[event(3, source="street")]), pixels(3))
        thread.end("street", [event(4, "leave", end_s=0.15, source="street")], "")
        thread.close(complete=True)
        assert happens(lambda: heard.payloads("home/cams/status")[-1] == "offline")
        with listening(broker.port) as later:
            assert happens(lambda: bool(later.payloads("home/cams/status")))
            assert later.payloads("home/cams/street/event") == []
    events = heard.payloads("home/cams/street/event")
    assert [(seen["kind"], seen["label"], seen["frame"]) for seen in events] == [
        ("enter", "cat", 3),
        ("leave", "cat", 4),
    ]
    states = heard.payloads("home/cams/street/state")
    assert [view["region"] for view in states[0]["views"]] == ["left", "right"]
    assert [view["present"] for view in states[-1]["views"]] == [[], []]  # nothing is there once the source has ended


def test_discovery_is_what_home_assistant_reads(tiny_bundle: Path, broker: Broker) -> None:
    run = make_run(tiny_bundle)
    with listening(broker.port) as heard:
        thread = SinkThread(MqttSink(url(broker)), run)
        assert happens(lambda: len([1 for topic, *_ in heard.messages if topic.startswith("homeassistant/")]) == 4)
        with listening(broker.port) as later:
            assert happens(lambda: len([1 for topic, _, kept in later.messages if kept and "/config" in topic]) == 4)
        thread.close(complete=True)
    configs = {topic: json.loads(payload) for topic, payload, _ in heard.messages if topic.startswith("homeassistant/")}
    kinds = sorted(topic.split("/")[1] for topic in configs)
    assert kinds == ["binary_sensor", "binary_sensor", "binary_sensor", "sensor"]
    assert len({config["unique_id"] for config in configs.values()}) == 4
    for config in configs.values():
        assert config["state_topic"] == "home/cams/yard/state"
        assert config["availability_topic"] == "home/cams/status"
        assert [own.rpartition("-")[0] for own in config["device"]["identifiers"]] == ["edgeclip-home_cams"]
        assert config["device"]["model"] == "tiny"
    templates = [config["value_template"] for config in configs.values()]
    assert "{{ value_json.label }}" in templates
    assert "{{ 'ON' if \"cup\" in value_json.present else 'OFF' }}" in templates


def test_discovery_templates_hold_for_any_label() -> None:
    """Jinja, which Home Assistant uses, takes a JSON string for a string."""
    jinja2 = pytest.importorskip("jinja2")
    labels = ['a "quoted" one', "it's", "back\\slash", "Straße 😀", "}} {{ x"]
    payloads = discovery("b", {"yard": "b/yard/state"}, labels, model="m")
    sensors = [json.loads(payload) for topic, payload in payloads.items() if "/binary_sensor/" in topic]
    assert [sensor["name"] for sensor in sensors] == [f"yard {label}" for label in labels]
    for label, sensor in zip(labels, sensors, strict=True):
        template = jinja2.Template(sensor["value_template"])
        assert template.render(value_json={"present": [label]}) == "ON"
        assert template.render(value_json={"present": ["other"]}) == "OFF"


def ids(base: str, states: dict[str, str], labels: list[str]) -> dict[str, str]:
    """Unique id of each entity, by its name; a topic an entity."""
    payloads = discovery(base, states, labels, model="m")
    configs = [json.loads(payload) for payload in payloads.values()]
    assert len(payloads) == len(states) * (len(labels) + 1)
    assert all(re.fullmatch(r"homeassistant/\w+/[A-Za-z0-9_-]+/config", topic) for topic in payloads)
    return {config["name"]: config["unique_id"] for config in configs}


def test_an_entity_is_known_by_its_label_whatever_stands_before_it() -> None:
    labels = ["front door", "front/door", "front_door", "a.b", "a_b", "Cat", "cat", "é", "ü", "x" * 200, "x" * 201]
    one = ids("b", {"yard": "b/yard/state"}, labels)
    assert len({own.casefold() for own in one.values()}) == len(labels) + 1
    assert ids("b", {"yard": "b/yard/state"}, labels[::-1]) == one
    assert ids("b", {"yard": "b/yard/state"}, ["new", *labels])["yard cat"] == one["yard cat"]
    assert ids("b", {"gate": "b/gate/state", "yard": "b/yard/state"}, labels)["yard cat"] == one["yard cat"]


def test_parts_of_an_id_do_not_run_into_each_other() -> None:
    states = {"a": "b/a/state", "a-present-b": "b/x/state", "A": "b/y/state"}
    assert len({own.casefold() for own in ids("b", states, ["c", "b-present-c"]).values()}) == 9


def test_base_topics_that_differ_give_devices_and_entities_that_differ() -> None:
    bases = ["a/b", "a-b", "a_b", "a.b", "A/b", "a/b/c"]
    found = [discovery(base, {"yard": "t"}, ["cat"], model="m") for base in bases]
    devices = {
        json.loads(payload)["device"]["identifiers"][0].casefold() for each in found for payload in each.values()
    }
    assert len(devices) == len(bases)
    assert len({topic.casefold() for each in found for topic in each}) == 2 * len(bases)


@pytest.mark.parametrize(("count", "sensors"), [(50, 51), (51, 1)])
def test_large_tables_get_no_binary_sensors(count: int, sensors: int) -> None:
    assert len(discovery("b", {"yard": "b/yard/state"}, [f"class {n}" for n in range(count)], model="m")) == sensors


def test_discovery_can_be_left_out(tiny_bundle: Path, broker: Broker) -> None:
    with listening(broker.port) as heard:
        push(make_run(tiny_bundle), [MqttSink(url(broker), discovery=False)], [record(0)])
    assert not [topic for topic, *_ in heard.messages if topic.startswith("homeassistant/")]


def test_another_table_brings_its_entities_and_takes_the_old_ones_away(tiny_bundle: Path, broker: Broker) -> None:
    run = make_run(tiny_bundle)
    rows = unit_rows(np.eye(2, WIDTH, dtype=np.float32))
    table = PromptTable("things", make_classes(["cat", "fox"]), rows, ("{}",), run.bundle.manifest.model.id)
    with listening(broker.port) as heard:
        thread = SinkThread(MqttSink(url(broker), interval_s=0.0), run)
        assert happens(lambda: heard.payloads("home/cams/status") == ["online"])
        thread.put(record(0), pixels(0))
        run.tables.replace("things", table)
        assert happens(lambda: len(heard.payloads("home/cams/yard/state")) == 1)
        thread.put(record(1, "fox"), pixels(1))
        thread.close(complete=True)
        assert happens(lambda: heard.payloads("home/cams/status")[-1] == "offline")
    with listening(broker.port) as later:
        assert happens(lambda: bool(later.payloads("home/cams/status")))
        names = sorted(
            json.loads(payload)["name"] for topic, payload, _ in later.messages if "/binary_sensor/" in topic
        )
    assert names == ["yard cat", "yard fox"]


def test_events_of_an_absent_broker_wait_and_the_state_is_the_latest(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker starts late, is killed, and comes back without its memory; the file beside it misses nothing."""
    broker = Broker(tmp_path)
    run = make_run(tiny_bundle)
    path = tmp_path / "a.jsonl"
    threads = [SinkThread(sink, run) for sink in (MqttSink(url(broker), interval_s=0.0), JsonlSink(path))]

    def put(index: int, label: str = "cat") -> None:
        for thread in threads:
            thread.put(record(index, label, events=[event(index)]), pixels(index))

    with caplog.at_level(logging.WARNING, logger="edgeclip"):
        for index in range(10):
            put(index)
        broker.start()
        try:
            with listening(broker.port) as heard:
                assert happens(lambda: len(heard.payloads("home/cams/yard/event")) == 10)
                put(10, "rocket")
                assert happens(lambda: [state["frame"] for state in heard.payloads("home/cams/yard/state")] == [10])
            broker.kill()
            for index in range(11, 20):
                put(index)
            broker.start()
            with listening(broker.port) as again:
                assert happens(
                    lambda: set(range(11, 20)) <= {e["frame"] for e in again.payloads("home/cams/yard/event")}
                )
                put(20)
                assert happens(
                    lambda: [state["frame"] for state in again.payloads("home/cams/yard/state")][-1:] == [20]
                )
                assert "online" in again.payloads("home/cams/status")
                for thread in threads:
                    thread.close(complete=True)
        finally:
            broker.kill()
    assert [json.loads(line)["frame"] for line in path.read_text().splitlines()] == list(range(21))
    assert run.account.sink_failed == {}
    assert "trying again" in caplog.text


def test_a_broker_that_never_comes_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    run = make_run(tiny_bundle)
    records = [record(index, events=[event(index)]) for index in range(1100)]
    push(
        run, [MqttSink(url(broker).replace("mqtt://", "mqtt://me:hunter2@")), JsonlSink(tmp_path / "a.jsonl")], records
    )
    said = run.account.sink_failed["mqtt"]
    lost = run.account.sink_dropped["mqtt"]
    assert f"no connection to mqtt://127.0.0.1:{broker.port}/home/cams" in said
    assert f"{1100 - lost:,} messages were not delivered" in said
    assert "hunter2" not in said
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1100


def test_a_host_that_is_nonsense_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="no such host") as refused:
        SinkThread(MqttSink("mqtt://me:hunter2@no-such-host.invalid/x"), make_run(tiny_bundle))
    assert "hunter2" not in str(refused.value)


def test_a_wrong_password_is_said_and_never_shown(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker(tmp_path, "allow_anonymous false")
    broker.start()
    try:
        run = make_run(tiny_bundle)
        with caplog.at_level(logging.DEBUG):
            thread = SinkThread(MqttSink(url(broker).replace("mqtt://", "mqtt://me:hunter2@")), run)
            assert happens(lambda: "Not authorized" in caplog.text)
            thread.close(complete=True)
    finally:
        broker.kill()
    assert "Not authorized" in run.account.sink_failed["mqtt"]
    assert "hunter2" not in caplog.text + str(run.account.sink_failed)


def test_a_broker_that_announces_a_huge_packet_is_hung_up_on(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with socket.create_server(("127.0.0.1", 0)) as server:
        hung_up = threading.Event()

        def announce() -> None:
            connection = server.accept()[0]
            with connection:
                connection.recv(1024)
                connection.sendall(b"\x20\x02\x00\x00")  # connected
                connection.sendall(b"\x30\xff\xff\xff\x7f")  # what follows is 268,435,455 bytes long
                connection.settimeout(10)
                while connection.recv(1024):
                    pass
            hung_up.set()

        threading.Thread(target=announce, daemon=True).start()
        with caplog.at_level(logging.WARNING, logger="edgeclip"):
            sink = MqttSink(f"mqtt://127.0.0.1:{server.getsockname()[1]}/x")
            thread = SinkThread(sink, make_run(tiny_bundle))
            assert hung_up.wait(10)
            assert happens(lambda: "connection lost" in caplog.text)
        thread.close(complete=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000


def test_a_topic_that_no_broker_takes_is_refused() -> None:
    with pytest.raises(InputError, match="70,000 letters"):
        MqttAddress.parse("mqtt://h/" + "x" * 70_000)


@pytest.mark.parametrize(
    "password", ["hun/ter2", "12/hunter2", "hun?ter2", "hun#ter2", "1#hunter2", "h@hun/ter2", "[hunter2"]
)
def test_a_password_that_is_not_escaped_is_refused_and_not_repeated(password: str) -> None:
    for url in (f"mqtt://me:{password}@h/x", f"mqtt://me:{password}@h:1883/x"):
        with pytest.raises(InputError) as refused:
            MqttAddress.parse(url)
        assert not re.search("hun|ter2", str(refused.value))
        if "[" not in password:
            assert "%2F" in str(refused.value)


KILLED = """
import sys, time
from pathlib import Path
from edgeclip.runtime.sinks.base import SinkThread
from edgeclip.runtime.sinks.mqtt import MqttSink
from tests.sink_runs import make_run
thread = SinkThread(MqttSink(sys.argv[2]), make_run(Path(sys.argv[1])))
time.sleep(60)
"""


def test_the_last_will_of_a_killed_program_says_offline(tiny_bundle: Path, broker: Broker) -> None:
    with listening(broker.port) as heard:
        program = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tiny_bundle), url(broker)], cwd=Path(__file__).parents[2]
        )
        try:
            assert happens(lambda: heard.payloads("home/cams/status") == ["online"], 30)
        finally:
            program.kill()
            program.wait()
        assert happens(lambda: heard.payloads("home/cams/status") == ["online", "offline"])
    with listening(broker.port) as later:
        assert happens(lambda: ("home/cams/status", b"offline", True) in later.messages)


def test_tls_checks_the_broker(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, which is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    broker = Broker(tmp_path, f"allow_anonymous true\ncertfile {certificate}\nkeyfile {key}")
    broker.start()
    address = f"mqtts://localhost:{broker.port}/x"
    try:
        distrusting = make_run(tiny_bundle)
        with caplog.at_level(logging.WARNING, logger="edgeclip"):
            thread = SinkThread(MqttSink(address), distrusting)
            assert happens(lambda: "certificate is not trusted" in caplog.text)
            thread.close(complete=True)
        assert "no connection to mqtts://localhost" in distrusting.account.sink_failed["mqtt"]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusting = make_run(tiny_bundle)
        with caplog.at_level(logging.INFO, logger="edgeclip"):
            thread = SinkThread(MqttSink(address), trusting)
            assert happens(lambda: "connected to mqtts://localhost" in caplog.text)
        thread.close(complete=True)
        assert trusting.account.sink_failed == {}
    finally:
        broker.kill()
