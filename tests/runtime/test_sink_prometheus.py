"""What a Prometheus server would scrape agrees with the account and the records."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeclip.errors import InputError
from edgeclip.runtime.records import Scored, View
from edgeclip.runtime.sinks.base import Run, SinkThread
from edgeclip.runtime.sinks.prometheus import PrometheusSink
from tests.sink_runs import Named, event, happens, make_run, pixels, record

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"edgeclip_{name}", tuple(sorted(labels.items()))))


def serve(run: Run) -> tuple[PrometheusSink, SinkThread]:
    sink = PrometheusSink("0")
    return sink, SinkThread(sink, run)


def test_metrics_agree_with_what_happened(tiny_bundle: Path) -> None:
    run = make_run(tiny_bundle, Named("yard"), Named('front "door"'))
    sink, thread = serve(run)
    count = run.account.sources["yard"]
    count.read, count.dropped, count.gated, count.encoded, count.failed, count.reconnects = 20, 3, 5, 12, 2, 1
    run.account.sink_dropped["web"] = 4
    run.account.sink_failed["mqtt"] = "no broker"
    for index in range(10):
        events = [event(index, label='cup "x"')] if index == 3 else []
        thread.put(record(index, source="yard", gated=index >= 6, events=events), pixels(index))
    thread.put(record(10, label="rocket", score=0.5, source="yard"), pixels(10))
    assert happens(lambda: value(scrape(sink.port), "latency_seconds_count", source="yard") == 11)
    samples = scrape(sink.port)
    thread.close(complete=True)
    for name, expected in {"read": 20, "dropped": 3, "gated": 5, "encoded": 12, "failed": 2}.items():
        assert value(samples, f"frames_{name}_total", source="yard") == expected
        assert value(samples, f"frames_{name}_total", source='front "door"') == 0
    assert value(samples, "reconnects_total", source="yard") == 1
    assert value(samples, "events_total", label='cup "x"', kind="enter", source="yard") == 1
    assert value(samples, "latency_seconds_sum", source="yard") == pytest.approx(11 * 0.02025)
    assert value(samples, "latency_seconds_bucket", source="yard", le="0.01") == 0
    assert value(samples, "latency_seconds_bucket", source="yard", le="0.025") == 11
    assert value(samples, "encode_seconds_count", source="yard") == 7
    assert value(samples, "sink_dropped_total", sink="web") == 4
    assert value(samples, "sink_dead", sink="mqtt") == 1
    scores = {key: score for key, score in samples.items() if key[0] == "edgeclip_label_score"}
    assert list(scores.values()) == [0.5]  # of the current label only
    assert value(samples, "label_score", source="yard", table="things", region="", label="rocket") == 0.5


def test_every_view_has_one_score_and_an_ended_source_none(tiny_bundle: Path) -> None:
    run = make_run(tiny_bundle, Named("yard"))
    sink, thread = serve(run)
    views = [View("things", f"tile {n}", "cat", n / 4, [Scored("cat", n / 4)]) for n in range(4)]
    thread.put(record(0, views=views), pixels(0))
    assert happens(
        lambda: (
            value(scrape(sink.port), "label_score", source="yard", table="things", region="tile 2", label="cat") == 0.5
        )
    )
    thread.end("yard", [event(1, "leave", end_s=0.05)], "")
    assert happens(lambda: value(scrape(sink.port), "events_total", label="cat", kind="leave", source="yard") == 1)
    assert not [key for key in scrape(sink.port) if key[0] == "edgeclip_label_score"]
    thread.close(complete=True)


def test_events_of_very_many_labels_make_a_bounded_number_of_series(tiny_bundle: Path) -> None:
    run = make_run(tiny_bundle)
    sink, thread = serve(run)
    for index in range(500):
        thread.put(record(index, events=[event(index, label=f"class {index}")]), pixels(index))
    assert happens(lambda: value(scrape(sink.port), "latency_seconds_count", source="yard") == 500)
    series = {key: n for key, n in scrape(sink.port).items() if key[0] == "edgeclip_events_total"}
    thread.close(complete=True)
    assert len(series) == 201
    assert sum(series.values()) == 500


def test_it_listens_on_this_machine_only_and_stops(tiny_bundle: Path) -> None:
    sink, thread = serve(make_run(tiny_bundle))
    assert sink.host == "127.0.0.1"
    scrape(sink.port)
    thread.close(complete=True)
    with pytest.raises(OSError, match="refused"):
        scrape(sink.port)


@pytest.mark.parametrize(
    ("address", "host"), [("9100", "127.0.0.1"), ("0.0.0.0:9100", "0.0.0.0"), ("[::1]:1", "::1"), ("::1:1", "::1")]
)
def test_another_host_is_used_only_if_it_is_named(address: str, host: str) -> None:
    assert PrometheusSink(address).host == host


def test_a_port_that_is_taken_is_refused(tiny_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="choose another port"):
            SinkThread(PrometheusSink(str(taken.getsockname()[1])), make_run(tiny_bundle))
