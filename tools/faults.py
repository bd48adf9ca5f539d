"""Deliberate faults: each is put into a copy of this checkout, and the tests of its subject have to fail for it.

    python tools/faults.py [--only NAME …] [--list]

What decides (limits, promises, refusals) can be broken without a crash, so a test that passes says nothing until it has
failed for the fault that it is there for. Each fault that was found in that way stays in ``FAULTS``. The exit status is
1 if a fault survives, if its text is no longer there exactly once, or if its tests fail without it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LIMIT_S = 300  # of one test


@dataclass(frozen=True)
class Fault:
    """One way to break edgeclip.

    Attributes:
        name: what goes wrong.
        file: where, from the checkout's root.
        old: text that stands there exactly once.
        new: what to put in its place.
        test: what has to fail, as pytest takes it.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


@dataclass(frozen=True)
class Outcome:
    """What became of a fault.

    Attributes:
        killed: whether a test failed for it.
        by: the first test that did; else why there is none.
    """

    killed: bool
    by: str
    seconds: float


FAULTS = (
    Fault(
        "INT8's limits are not held",
        "edgeclip/runtime/proof/parity.py",
        'if check.status == "failed"]',
        'if check.status == "failed" and limits != LIMITS["int8"]]',
        "tests/runtime/test_parity.py::test_no_precision_lets_an_encoder_pass_that_is_broken",
    ),
    Fault(
        "thresholds are tried after one failed",
        "edgeclip/calibration/decisions/precision_bound.py",
        "            break\n        best = ",
        "            continue\n        best = ",
        "tests/calibration/test_decisions.py::test_thresholds_are_asked_about_in_turn_until_one_fails",
    ),
    Fault(
        "a plan's memory is 0",
        "edgeclip/devices/plan/memory.py",
        "return self.weights + self.activations + self.frames + self.library",
        "return 0",
        "tests/devices/test_plan.py::test_a_variant_fits_to_the_byte",
    ),
    Fault(
        "a plan counts no weights",
        "edgeclip/devices/plan/memory.py",
        "weights=cost.weights * ELEMENT_BYTES[precision],",
        "weights=0,",
        "tests/devices/test_plan.py::test_memory_is_counted_by_hand",
    ),
    Fault(
        "an unpaired interval is 20 times too wide",
        "edgeclip/evaluation/statistics/rounds.py",
        "return t95(freedom) * math.sqrt(va + vb)",
        "return 20 * t95(freedom) * math.sqrt(va + vb)",
        "tests/evaluation/test_bench.py::test_two_sets_of_rounds_differ_by_scipys_interval",
    ),
    Fault(
        "any cookie opens the page",
        "edgeclip/runtime/page/guard.py",
        "if any(value and self._is_token(value) for value in given):",
        "if given[2] or any(value and self._is_token(value) for value in given):",
        "tests/runtime/test_web.py::test_a_token_opens_the_page_by_header_query_or_cookie",
    ),
    Fault(
        "few shots may lose to zero-shot",
        "edgeclip/training/adapt/fewshot.py",
        "    if method.from_text:\n",
        "    if not method.from_text:\n",
        "tests/training/test_fewshot.py::test_what_is_worse_than_zero_shot_beyond_chance_is_not_taken",
    ),
    Fault(
        "better is worse in a trade-off",
        "edgeclip/evaluation/tradeoff/measure.py",
        '"worse" if more > 0 else "better"',
        '"better" if more > 0 else "worse"',
        "tests/evaluation/test_tradeoff.py::test_two_points_differ_only_where_it_is_beyond_noise",
    ),
    Fault(
        "a pair of points stands the other way round",
        "edgeclip/evaluation/tradeoff/decide.py",
        "return self._pairs[other.label, point.label].verdicts.get(axis)",
        "return self._pairs[point.label, other.label].verdicts.get(axis)",
        "tests/evaluation/test_tradeoff.py::test_limits_are_kept",
    ),
    Fault(
        "what is beaten beats",
        "edgeclip/evaluation/tradeoff/decide.py",
        "return self._pairs[other.label, point.label].second_wins",
        "return self._pairs[point.label, other.label].second_wins",
        "tests/evaluation/test_tradeoff.py::test_the_worst_is_never_recommended",
    ),
    Fault(
        "the least accurate counts as the most",
        "edgeclip/evaluation/tradeoff/decide.py",
        "return point.top1, -point.latency_ms.mean",
        "return -point.top1, -point.latency_ms.mean",
        "tests/evaluation/test_tradeoff.py::test_limits_are_kept",
    ),
    Fault(
        "merged tokens are compared with themselves",
        "edgeclip/export/merge_tokens/model.py",
        "for model in (self.unmerged, self)\n",
        "for model in (self, self)\n",
        "tests/export/test_merge_tokens.py::test_a_report_compares_the_merged_tower_with_the_unmerged_one",
    ),
    Fault(
        "lost margin counts as gained",
        "edgeclip/runtime/proof/parity.py",
        "(before - after) / unit",
        "(after - before) / unit",
        "tests/runtime/test_parity.py::test_margin_loss_is_counted_in_the_references_median_gap",
    ),
    Fault(
        "the centred cosine is not centred",
        "edgeclip/runtime/proof/parity.py",
        "_cosine(exact - centre, tried - centre)",
        "_cosine(exact, tried)",
        "tests/runtime/test_parity.py::test_what_all_images_have_in_common_hides_no_damage",
    ),
    Fault(
        "the best batch size counts",
        "edgeclip/runtime/proof/parity.py",
        "_extreme(np.min, reports, name)",
        "_extreme(np.max, reports, name)",
        "tests/runtime/test_parity.py::test_the_worst_of_two_batch_sizes_counts_for_each_figure",
    ),
    Fault(
        "a NaN passes",
        "edgeclip/runtime/proof/parity.py",
        "passed=value is not None and value >= limit,",
        "passed=value is not None and not value < limit,",
        "tests/runtime/test_parity.py::test_every_limit_counts_and_what_is_not_a_number_reaches_none",
    ),
    Fault(
        "half the speed is worth FP32",
        "edgeclip/runtime/proof/choose.py",
        "_WORTH_IT = 0.95",
        "_WORTH_IT = 0.5",
        "tests/runtime/test_choose.py::test_the_fastest_is_taken_unless_a_more_exact_one_takes_hardly_longer",
    ),
    Fault(
        "what failed its proof is chosen",
        "edgeclip/runtime/proof/choose.py",
        "(proof for proof in proofs if not proof.failures)",
        "(proof for proof in proofs)",
        "tests/runtime/test_choose.py::test_the_device_passes_over_a_broken_variant_and_says_why",
    ),
    Fault(
        "advice is followed unproved",
        "edgeclip/runtime/proof/choose.py",
        "            if not proof.failures:\n                return",
        "            if proof:\n                return",
        "tests/runtime/test_choose.py::test_advice_to_run_what_disagrees_with_fp32_is_not_followed",
    ),
    Fault(
        "the loop's embeddings are not looked at",
        "edgeclip/runtime/proof/in_the_loop.py",
        "    if not cosine >= least:",
        "    if False:",
        "tests/runtime/test_stream_proof.py::test_every_start_looks_again",
    ),
    Fault(
        "an altered proof is believed",
        "edgeclip/files.py",
        "if hashlib.sha256(kept.value).hexdigest() != kept.sha256:",
        "if not kept.sha256:",
        "tests/test_documents.py::test_what_was_kept_and_altered_is_as_if_it_were_not_there",
    ),
    Fault(
        "what an engine named itself last is taken for what runs",
        "edgeclip/runtime/proof/choose.py",
        "if not all(map(_still_there, [_best(good)] if good else proofs)):",
        "if not good:",
        "tests/runtime/test_site_proof.py::test_of_a_choice_that_is_kept_only_the_engine_that_runs_is_asked_what_it_is",
    ),
    Fault(
        "a later start is not looked at",
        "edgeclip/runtime/proof/in_the_loop.py",
        "    if known:  # every one",
        "    if known:\n        return\n    if known:  # every one",
        "tests/runtime/test_stream_proof.py::test_every_start_looks_again",
    ),
    Fault(
        "a paired difference has the wrong sign",
        "edgeclip/evaluation/statistics/paired.py",
        "points=100 * (won - lost) / n,",
        "points=100 * (lost - won) / n,",
        "tests/evaluation/test_statistics.py::test_a_paired_difference_is_that_of_its_counts",
    ),
    Fault(
        "McNemar's test counts the reference's",
        "edgeclip/evaluation/statistics/paired.py",
        "won, changed = difference.only_candidate,",
        "won, changed = difference.only_reference,",
        "tests/evaluation/test_prompt_study.py::test_mcnemars_p_value_is_that_of_coins",
    ),
    Fault(
        "false discoveries are counted, not any false claim",
        "edgeclip/evaluation/statistics/paired.py",
        'method="holm"',
        'method="fdr_bh"',
        "tests/evaluation/test_statistics.py::test_holms_values_grow_with_the_claims_that_are_made_at_once",
    ),
    Fault(
        "a loss under shift has the wrong sign",
        "edgeclip/evaluation/statistics/paired.py",
        "extra = shifted - (clean_candidate.astype(np.float64) - clean_reference)",
        "extra = (clean_candidate.astype(np.float64) - clean_reference) - shifted",
        "tests/evaluation/test_statistics.py::test_the_difference_of_differences_is_that_of_a_case_by_hand",
    ),
    Fault(
        "a tie counts as a hit",
        "edgeclip/evaluation/statistics/metrics.py",
        "(similarities >= own).sum(axis=1) - 1",
        "(similarities > own).sum(axis=1)",
        "tests/evaluation/test_evaluation.py::test_a_tie_is_no_hit",
    ),
    Fault(
        "a share is its own lower bound",
        "edgeclip/calibration/decisions/precision_bound.py",
        "return float(stats.beta.ppf(1 - confidence, right, n - right + 1))",
        "return right / n",
        "tests/calibration/test_decisions.py::test_the_lower_bound_is_clopper_and_pearsons",
    ),
    Fault(
        "drift is none",
        "edgeclip/calibration/choice/drift.py",
        "drifted = p_value <= LEVEL",
        "drifted = p_value > LEVEL",
        "tests/calibration/test_calibrate_images.py::test_the_verdict_says_what_was_found",
    ),
    Fault(
        "a file's hash is not checked",
        "edgeclip/bundle.py",
        "if digest != record.sha256:",
        "if False:",
        "tests/test_bundle.py::test_any_flipped_byte_of_a_file_is_refused",
    ),
    Fault(
        "the manifest's hash is not checked",
        "edgeclip/manifest.py",
        "if envelope.sha256 != sha256_json(envelope.manifest):",
        "if False:",
        "tests/test_bundle.py::test_any_flipped_byte_of_the_manifest_is_refused",
    ),
    Fault(
        "a table of any model is taken",
        "edgeclip/bundle.py",
        "if table.model_id not in model.table_ids:",
        "if False:",
        "tests/test_bundle.py::test_a_table_of_another_width_or_model_is_refused",
    ),
    Fault(
        "decisions outlive their graph",
        "edgeclip/decisions.py",
        "if found.facts.rows == rows and found.facts.graph == graph:",
        "if found.facts.rows == rows:",
        "tests/calibration/test_decisions.py::test_a_prompt_edit_or_a_new_graph_makes_decisions_stale_and_a_refit_mends_it",
    ),
    Fault(
        "decisions outlive their prompts",
        "edgeclip/decisions.py",
        "if found.facts.rows == rows and found.facts.graph == graph:",
        "if found.facts.graph == graph:",
        "tests/calibration/test_decisions.py::test_a_prompt_edit_or_a_new_graph_makes_decisions_stale_and_a_refit_mends_it",
    ),
    Fault(
        "mean and std change places",
        "edgeclip/runtime/engines/base.py",
        "np.asarray(spec.mean, np.float32) / std",
        "std / np.asarray(spec.mean, np.float32)",
        "tests/runtime/test_preprocess.py::test_normalises_to_planar_float",
    ),
    Fault(
        "embeddings keep their length",
        "edgeclip/runtime/encoder.py",
        "return unit_rows(self.engine.infer(images))",
        "return self.engine.infer(images)",
        "tests/runtime/test_label.py::test_the_encoder_normalises_and_a_batch_is_its_frames",
    ),
    Fault(
        "a stream's embeddings keep their length",
        "edgeclip/runtime/encoder.py",
        "return unit_rows(np.concatenate([rows for rows, _ in results])),",
        "return np.concatenate([rows for rows, _ in results]),",
        "tests/runtime/test_preprocess.py::test_normalisation_in_the_graph_differs_by_rounding_only",
    ),
    Fault(
        "a background row is a label",
        "edgeclip/runtime/decision.py",
        "UNKNOWN if scorer.is_background(row) or best.score < threshold",
        "UNKNOWN if best.score < threshold",
        "tests/runtime/test_decision.py::test_a_background_row_means_unknown_and_never_enters",
    ),
    Fault(
        "a background row enters",
        "edgeclip/runtime/scoring.py",
        "if row not in self.background and scores[row] >=",
        "if scores[row] >=",
        "tests/runtime/test_decision.py::test_a_background_row_means_unknown_and_never_enters",
    ),
    Fault(
        "a class leaves where it enters",
        "edgeclip/runtime/decision.py",
        "score >= options.leave_ratio * scorer.threshold_of(row, enter):",
        "score >= scorer.threshold_of(row, enter):",
        "tests/runtime/test_decision.py::test_between_leave_and_enter_a_present_label_stays_and_an_absent_one_does_not_come",
    ),
    Fault(
        "a class leaves at once",
        "edgeclip/runtime/decision.py",
        "            elif time_s - stay.seen_s >= options.dwell_s - _TICK_S:\n                gone",
        "            else:\n                gone",
        "tests/runtime/test_decision.py::test_a_label_enters_after_its_dwell_and_leaves_after_it",
    ),
    Fault(
        "the scene gate compares with the last frame",
        "edgeclip/runtime/gate.py",
        "<= self.threshold:\n            return False",
        "<= self.threshold:\n            self._reference = cells\n            return False",
        "tests/runtime/test_gate.py::test_a_slow_drift_adds_up",
    ),
    Fault(
        "an address keeps its password",
        "edgeclip/runtime/sources/address.py",
        "    if _URL.match(text.lstrip()):\n        return _address_without(text)",
        "    if _URL.match(text.lstrip()):\n        return text",
        "tests/runtime/test_secrets.py::test_no_part_of_a_secret_is_left",
    ),
    Fault(
        "another site's page may ask",
        "edgeclip/runtime/page/guard.py",
        "if asked_from != host:",
        "if False:",
        "tests/runtime/test_web.py::test_on_loopback_other_sites_get_nothing",
    ),
    Fault(
        "any name may be this machine's",
        "edgeclip/runtime/page/guard.py",
        "if self._token is None and not is_loopback(_host_name(host)):",
        "if False:",
        "tests/runtime/test_web.py::test_on_loopback_other_sites_get_nothing",
    ),
    Fault(
        "a webhook follows redirections",
        "edgeclip/runtime/sinks/webhook.py",
        "    def redirect_request(self",
        "    def redirected(self",
        "tests/runtime/test_sink_webhook.py::test_a_redirection_is_not_followed",
    ),
    Fault(
        "an illegal graph is exported",
        "edgeclip/export/lint/lint.py",
        '    errors = [finding for finding in findings if finding.severity == "error"]',
        "    errors = []",
        "tests/export/test_lint.py::test_an_illegal_graph_is_one_error_that_lists_the_first_five",
    ),
    Fault(
        "a curve is tested on its shots",
        "edgeclip/training/adapt/curve.py",
        "test.append(rows[pool:])",
        "test.append(rows)",
        "tests/training/test_fewshot.py::test_the_curve_tests_on_images_that_no_method_saw",
    ),
    Fault(
        "what is hoped for is promised to be reached",
        "edgeclip/devices/plan/plan.py",
        "if wanted <= speed.images_per_s.low:",
        "if wanted <= speed.images_per_s.high:",
        "tests/devices/test_plan.py::test_what_is_reached_for_sure_perhaps_and_not_at_all",
    ),
    Fault(
        "a measurement elsewhere counts in full",
        "edgeclip/devices/plan/calibration.py",
        "ratio ** (1.0 if here else _ELSEWHERE)",
        "ratio",
        "tests/devices/test_plan_figures.py::test_what_was_measured_calibrates_its_engine_there_and_by_half_elsewhere",
    ),
    Fault(
        "a card runs at its boost clock whatever its power limit",
        "edgeclip/devices/plan/speed.py",
        "return min(1.0, _HELD_TFLOPS_PER_W",
        "return max(1.0, _HELD_TFLOPS_PER_W",
        "tests/devices/test_plan_figures.py::test_a_card_holds_what_its_power_limit_allows",
    ),
    Fault(
        "a machine's own JetPack is not planned for",
        "edgeclip/devices/plan/plan.py",
        "replace(demand, jetpack=release.version)",
        "replace(demand, jetpack=None)",
        "tests/devices/test_power_modes.py::test_on_the_device_its_own_jetpack_is_planned_for",
    ),
    Fault(
        "a Jetson's benchmark counts as one at its highest clocks",
        "edgeclip/evaluation/bench/calibrate.py",
        'get("power_mode")) is None:',
        'get("power_mode", "MAXN")) is None:',
        "tests/devices/test_plan.py::test_a_benchmark_that_cannot_be_compared_calibrates_nothing",
    ),
    Fault(
        "a module is known by the first digits of its number",
        "edgeclip/devices/machine/machine.py",
        '{re.escape(part)}(?!\\d)"',
        '{re.escape(part)}"',
        "tests/devices/test_matching.py::test_a_board_is_known_by_its_device_tree_and_its_memory",
    ),
    Fault(
        "a line of tegrastats that was cut is read",
        "edgeclip/devices/sensors/tegrastats.py",
        'if not line.endswith("\\n"):',
        "if not line:",
        "tests/devices/test_sensors.py::test_a_line_that_ends_within_a_number_is_not_read",
    ),
    Fault(
        "a GeForce card sums in FP32 at full rate",
        "edgeclip/devices/plan/speed.py",
        "fp32_sums=SHARES_OF[engine] not in _ADDS_IN_FP16",
        "fp32_sums=False",
        "tests/devices/test_plan_figures.py::test_engines_meet_a_devices_peaks_as_they_add_and_round",
    ),
    Fault(
        "fast preprocessing is always allowed",
        "edgeclip/runtime/preprocess/choose.py",
        "return measured if measured.passed else msgspec",
        "return measured if measured else msgspec",
        "tests/runtime/test_preprocess.py::test_the_gate_refuses_fast_to_an_encoder_that_it_would_change",
    ),
    Fault(
        "-256 °C of a part that is switched off is a temperature",
        "edgeclip/devices/machine/temperatures.py",
        "return celsius < _OFF_C",
        "return celsius < -300",
        "tests/devices/test_jetson_records.py::test_a_sensor_that_is_switched_off_has_no_temperature",
    ),
    Fault(
        "a constant is the hottest zone",
        "edgeclip/devices/machine/temperatures.py",
        "return bool(_CONSTANT.search(zone))",
        "return False",
        "tests/devices/test_jetson_records.py::test_the_hottest_zone_is_one_that_measures",
    ),
    Fault(
        "telemetry knows the channels of the first line alone",
        "edgeclip/devices/sensors/telemetry.py",
        "            self._widen()\n",
        "",
        "tests/devices/test_jetson_records.py::test_what_a_thor_names_only_under_load_comes_to_be_known",
    ),
    Fault(
        "readings before a channel was known slide into its place",
        "edgeclip/devices/sensors/telemetry.py",
        "row[end + 1 : end + 1] =",
        "row[len(row) :] =",
        "tests/devices/test_jetson_records.py::test_a_channel_that_comes_late_moves_no_other",
    ),
    Fault(
        "a rail of several parts is the CPU's",
        "edgeclip/devices/sensors/jetson.py",
        '        case ("CPU",):\n',
        '        case ("CPU", *_):\n',
        "tests/devices/test_jetson_records.py::test_a_rail_that_feeds_several_parts_is_no_parts_own",
    ),
    Fault(
        "a bare clock is passed over",
        "edgeclip/devices/sensors/tegrastats.py",
        "(?:@|(?<= ))",
        "(?:@)",
        "tests/devices/test_jetson_records.py::test_a_clock_is_read_with_a_load_after_an_at_or_bare",
    ),
    Fault(
        "an input that reads less than a part is believed",
        "edgeclip/devices/sensors/jetson.py",
        "powers_w[part] <= powers_w[whole]",
        "powers_w[part] <= 10 * powers_w[whole]",
        "tests/devices/test_jetson_records.py::test_an_input_is_doubted_on_the_one_carrier_that_names_its_rails_wrongly",
    ),
    Fault(
        "a link of another machine's files is followed on this one",
        "edgeclip/devices/machine/tree.py",
        '            if target.startswith("/"):\n                inside.clear()\n',
        '            if target.startswith("/"):\n                return Path(target)\n',
        "tests/devices/test_jetson_records.py::test_the_modes_behind_a_real_boards_link_are_read",
    ),
    Fault(
        "an older Python is mended with apt",
        "edgeclip/devices/doctor/jetson.py",
        "    if jetson is None or facts.system_python_too_old:\n",
        "    if jetson is None:\n",
        "tests/devices/test_jetson_records.py::test_a_python_that_is_too_old_is_not_mended_with_apt",
    ),
    Fault(
        "a later JetPack is denied where its Python is still too old",
        "edgeclip/devices/doctor/jetson.py",
        "        and version_key(each.python) > has\n",
        "        and version_key(each.python) >= OUR_PYTHON\n",
        "tests/devices/test_jetson_records.py::test_a_later_jetpack_is_named_where_there_is_one",
    ),
    Fault(
        "a board that gives its code name alone is not known",
        "edgeclip/devices/machine/machine.py",
        "        return 4, 0",
        "        return None",
        "tests/devices/test_matching.py::test_a_board_is_known_by_its_device_tree_and_its_memory",
    ),
    Fault(
        "cards of one name are told apart by their memory alone",
        "edgeclip/devices/machine/machine.py",
        "            (memory.bandwidth_gb_s, told.bandwidth_gb_s),\n",
        "",
        "tests/devices/test_matching.py::test_cards_of_one_name_are_told_apart_by_what_nvml_says",
    ),
    Fault(
        "a laptop's card is as fast as any laptop's",
        "edgeclip/devices/machine/machine.py",
        "    return found.at_power(gpu.power_w)",
        "    return found",
        "tests/devices/test_matching.py::test_a_laptops_gpu_is_as_fast_as_its_power_allows",
    ),
    Fault(
        "zram stays in use when its service is disabled",
        "edgeclip/devices/plan/advice.py",
        "| xargs -r sudo swapoff",
        "| xargs -r echo",
        "tests/devices/test_plan_figures.py::test_zram_is_taken_out_of_use_where_there_is_any",
    ),
)


def copy_checkout(to: Path) -> None:
    """Copy what git tracks or would track, as it lies there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def run_tests(checkout: Path, tests: Sequence[str]) -> Outcome:
    """Run tests of a checkout until one fails."""
    # A compiled file counts as current while size and time to the second are the same, which an edit may leave.
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    begin, limit_s = time.perf_counter(), _LIMIT_S * len(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "-p", "no:cacheprovider", "--tb=no", *tests]
    try:
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(killed=False, by=f"not known: more than {limit_s} s", seconds=limit_s)
    seconds = time.perf_counter() - begin
    failed = re.search(r"^(?:FAILED|ERROR) [\w/]*?(\w+\.py::\w+)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return Outcome(killed=True, by=failed[1], seconds=seconds)
    passed = done.returncode == 0 and re.search(r"\d+ passed", done.stdout)  # where all are skipped, none is
    by = "survives" if passed else f"no test ran: {' '.join((done.stdout + done.stderr).split())[-200:]}"
    return Outcome(killed=False, by=by, seconds=seconds)


def try_fault(checkout: Path, fault: Fault) -> Outcome:
    """Put a fault into a checkout, run its tests and take it out again."""
    path = checkout / fault.file
    text = path.read_text(encoding="utf-8")
    if (times := text.count(fault.old)) != 1:
        return Outcome(killed=False, by=f"rewrite the fault: its text is in {fault.file} {times} times", seconds=0.0)
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    try:
        return run_tests(checkout, [fault.test])
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> int:
    """Try the faults that were asked for; 0 if each is killed."""
    parser = argparse.ArgumentParser(description="Faults that tests have to fail for.")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[fault.name for fault in FAULTS])
    parser.add_argument("--list", action="store_true", help="print the faults and stop")
    asked = parser.parse_args()
    if unknown := set(asked.only).difference(fault.name for fault in FAULTS):
        parser.error(f"expected names that --list prints, got {', '.join(sorted(unknown))}")
    faults = [fault for fault in FAULTS if fault.name in asked.only]
    if asked.list:
        for fault in faults:
            print(f"{fault.name:<44} {fault.file}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        copy_checkout(checkout)
        sound = run_tests(checkout, list(dict.fromkeys(fault.test for fault in faults)))
        if sound.by != "survives":
            print(f"expected the tests to pass without a fault, got: {sound.by}: mend these first")
            return 1
        print(f"{len(faults)} faults; without them their tests pass in {sound.seconds:.0f} s\n")
        print(f"{'fault':<44} {'killed':<7} {'s':>4}  by", flush=True)
        outcomes = []
        for fault in faults:
            outcomes.append(found := try_fault(checkout, fault))
            print(
                f"{fault.name:<44} {'yes' if found.killed else 'NO':<7} {found.seconds:>4.0f}  {found.by}", flush=True
            )
    killed = sum(found.killed for found in outcomes)
    print(f"\n{killed} of {len(outcomes)} killed")
    return 0 if killed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
