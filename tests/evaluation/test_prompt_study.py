"""A prompt study finds what is there, says that nothing is where nothing is, and its page stands alone."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgeclip import Bundle, PromptTable
from edgeclip.calibration.hashed_images import Item, files
from edgeclip.cli import app
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.errors import InputError
from edgeclip.evaluation.prompts.choice import contributions, fewest_to_claim, halves
from edgeclip.evaluation.prompts.confused_names import ALIKE, APART, NAMES, TEXT_ONLY, confused_names
from edgeclip.evaluation.prompts.report import prompt_page
from edgeclip.evaluation.prompts.rows import PromptRows, hits_of
from edgeclip.evaluation.prompts.study import PromptReport, Studied, Study, study_prompts
from edgeclip.evaluation.statistics.paired import PairedDifference, holm, mcnemar_p
from edgeclip.export.prompt_table import table_for_bundle
from edgeclip.prompts import make_classes, unit_rows
from edgeclip.runtime.images import write_image
from tests.chromium import Chromium
from tests.conftest import shared

WIDTH = 32


@dataclass(frozen=True)
class World:
    """Classes that are points on a sphere; images and prompts are these points with noise of their own.

    Attributes:
        text, image: length of the noise, in lengths of the point.
    """

    seed: int
    classes: int = 10
    images: int = 20
    templates: int = 8
    names: int = 2
    text: float = 1.2
    image: float = 2.0

    def make(self, *, harmful: bool = False, alike: str = "", wrong_name: bool = False) -> tuple[PromptRows, ...]:
        """Prompt rows, images, labels.

        Args:
            harmful: the first template means the next class.
            alike: ``text`` or ``images``: those of the first two classes lie half-way between both.
            wrong_name: the second name of the first class means the second class.
        """
        chooser = np.random.default_rng(self.seed)

        def noise(*shape: int) -> np.ndarray:
            return chooser.standard_normal((*shape, WIDTH)).astype(np.float32) / np.sqrt(WIDTH)

        points = unit_rows(noise(self.classes))
        seen, said = points.copy(), np.repeat(points, self.names, axis=0)
        if alike == "images":
            seen[:2] = unit_rows(points[:2].mean(axis=0, keepdims=True))
        if alike:
            said[: 2 * self.names] = unit_rows(points[:2].mean(axis=0, keepdims=True))
        if wrong_name:
            said[1] = points[1]
        labels = np.repeat(np.arange(self.classes), self.images)
        images = unit_rows(seen[labels] + self.image * noise(len(labels)))
        rows = said[:, None] + self.text * noise(len(said), self.templates)
        if harmful:
            rows[:, 0] = np.roll(said, self.names, axis=0) * 3
        rows = unit_rows(rows.reshape(-1, WIDTH)).reshape(rows.shape)
        classes = make_classes({f"c{c}": [f"c{c}{'abc'[n]}" for n in range(self.names)] for c in range(self.classes)})
        return PromptRows(classes, tuple(f"t{t} {{}}" for t in range(self.templates)), rows), images, labels  # type: ignore[return-value]

    def study(self, **more: object) -> Study:
        prompts, images, labels = self.make(**more)  # type: ignore[arg-type]
        return study_prompts(prompts, images, labels)  # type: ignore[arg-type]


def changed(lost: int, won: int) -> PairedDifference:
    return PairedDifference(0.0, (0.0, 0.0), lost + won, lost, won)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 5), (3, 9), (9, 3), (40, 71), (7, 7)])
def test_mcnemars_p_value_is_that_of_coins(lost: int, won: int) -> None:
    n = lost + won
    chance = [math.comb(n, k) / 2**n for k in range(n + 1)]
    assert mcnemar_p(changed(lost, won), alternative="greater") == pytest.approx(sum(chance[won:]))
    assert mcnemar_p(changed(lost, won)) == pytest.approx(min(1.0, 2 * sum(chance[max(lost, won) :])))


def test_many_claims_are_made_harder_as_holm_says() -> None:
    fewest = fewest_to_claim(7, 0.025)
    just, short = ([mcnemar_p(changed(0, won))] + 6 * [1.0] for won in (fewest, fewest - 1))
    assert min(holm(just)) <= 0.025 < min(holm(short))


def test_where_nothing_differs_nothing_is_claimed() -> None:
    silent = [not World(seed, names=1 + seed % 2).study().suggestions for seed in range(60)]
    assert np.mean(silent) >= 0.95


def test_a_harmful_template_is_found_and_the_gain_is_that_of_other_images() -> None:
    study = World(0, templates=3, images=40, text=2.5).study(harmful=True)
    assert study.suggestions[0].action == "Use only 2 of 3 templates: t1 {}; t2 {}"
    assert study.choice is not None
    assert study.choice.recommended is not None
    assert study.choice.recommended.templates == ["t1 {}", "t2 {}"]
    assert study.choice.tested_on == 200
    assert study.choice.together is not None
    assert study.choice.together.ci95[0] > 10
    worst = min((item for item in study.contributions if not item.label), key=lambda item: item.top1)
    assert worst.what == "t0 {}"
    assert worst.left_out is not None
    assert worst.left_out.ci95[0] > 0


def test_a_name_that_means_another_class_is_found() -> None:
    study = World(1, images=100).study(wrong_name=True)
    assert study.choice is not None
    assert study.choice.recommended is not None
    assert study.choice.recommended.names["c0"] == ["c0a"]
    of_class = {item.what: item for item in study.contributions if item.label == "c0"}
    assert of_class["c0b"].left_out is not None
    assert of_class["c0b"].left_out.ci95[0] > 0
    assert of_class["c0b"].left_out == of_class["c0a"].alone


@pytest.mark.parametrize(("alike", "verdict"), [("text", NAMES), ("images", ALIKE), ("", APART)])
def test_a_pair_is_ambiguous_by_its_names_or_by_its_images(alike: str, verdict: str) -> None:
    study = World(2, images=60).study(alike=alike)
    found = {(item.first, item.second): item for item in study.nearest}
    if alike:
        assert study.nearest[0] == found["c0", "c1"]
        assert any("“c0” and “c1”" in item.action for item in study.suggestions)
        assert found.pop(("c0", "c1")).verdict == verdict
    assert {item.verdict for both, item in found.items() if not {"c0", "c1"} & set(both)} == {APART}


def test_of_a_class_without_images_only_the_text_is_judged() -> None:
    prompts, images, labels = World(2, images=60).make(alike="text")
    seen = labels != 0
    study = study_prompts(prompts, images[seen], labels[seen])  # type: ignore[arg-type, index]
    assert study.nearest[0].verdict == TEXT_ONLY
    assert study.nearest[0].gap is None
    assert not any("c0" in item.action for item in study.suggestions)
    assert any("No images of 1 of 10 classes (c0)" in note for note in study.notes)


def test_one_image_a_class_gives_wide_intervals_and_a_note() -> None:
    study = World(3, images=1, image=3.0).study()
    assert study.ci95[1] - study.ci95[0] > 0.4
    assert any(note.startswith("Few labels: 1 image a class") for note in study.notes)
    assert any("no gain at all could be told from noise" in note for note in study.notes)
    assert not study.suggestions


def test_every_figure_is_that_of_a_table_that_is_built_so() -> None:
    prompts, images, labels = World(5).make()
    reference = hits_of(images, labels, prompts.class_rows())  # type: ignore[arg-type]
    results = contributions(prompts, images, labels)  # type: ignore[arg-type]
    result = results[3]
    assert result.what == "t3 {}"
    alone = unit_rows(prompts.rows[:, 3].reshape(10, -1, WIDTH).mean(axis=1))
    assert result.top1 == hits_of(images, labels, alone).mean()  # type: ignore[arg-type]
    others = unit_rows(np.delete(prompts.rows, 3, axis=1).reshape(10, -1, WIDTH).mean(axis=1))
    assert result.left_out is not None
    gain = hits_of(images, labels, others).mean() - reference.mean()  # type: ignore[arg-type]
    assert result.left_out.points == pytest.approx(100 * gain)
    for result in results:
        if result.label:
            hits = hits_of(images, labels, prompts.class_rows(names={result.label: [result.what]}))  # type: ignore[arg-type]
            assert result.top1 == pytest.approx(hits.mean())
            assert result.alone.points == pytest.approx(100 * (hits.mean() - reference.mean()))
    names = prompts.rows.mean(axis=1)
    names[13] = 0  # the second of c6
    found = prompts.class_rows(names={"c6": ["c6a"]})
    np.testing.assert_allclose(found, unit_rows(names.reshape(10, 2, WIDTH).sum(axis=1)), atol=1e-6)


def test_halves_part_every_class() -> None:
    labels = np.array([0] * 6 + [1] * 5 + [2])
    first, second = halves(labels, 0)
    assert sorted([*first, *second]) == list(range(12))
    assert (labels[first] == 0).sum() == 3
    assert (labels[first] == 1).sum() in (2, 3)
    assert first.tolist() != halves(labels, 1)[0].tolist()


def test_the_nearest_pairs_are_chosen_without_looking_at_images() -> None:
    prompts, images, labels = World(6).make()
    rows = prompts.class_rows()
    one, other = (confused_names(rows, prompts.labels, some, labels, alpha=0.025)[0] for some in (images, -images))  # type: ignore[arg-type, operator]
    assert [(item.first, item.second) for item in one] == [(item.first, item.second) for item in other]


@pytest.mark.parametrize("classes", [1, 0])
def test_what_cannot_be_studied_is_refused(classes: int) -> None:
    prompts, images, labels = World(0).make()
    alone = PromptRows(prompts.classes[:1], prompts.templates, prompts.rows[:2])
    none = images[:0], labels[:0]  # type: ignore[index]
    with pytest.raises(InputError, match="two classes or more" if classes else "labelled images, got none"):
        study_prompts(alone if classes else prompts, *none)  # type: ignore[arg-type]


# The page


class _Outline(HTMLParser):
    """Checks that elements are closed in order, and keeps every address."""

    VOID = frozenset({"meta", "img", "line", "circle", "polyline", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images each of four of CIFAR-10's classes, or noise where they are not; a class has a name like markup."""
    root = tmp_path_factory.mktemp("few")
    for name in ("cat", "dog", "ship", "truck"):
        folder = root / ("<b>truck" if name == "truck" else name)
        folder.mkdir()
        for image in sorted(shared("cifar10-test", name).iterdir())[:8]:
            shutil.copy(image, folder)
    write_image(root / "cat" / "extra.png", np.zeros((8, 8, 3), np.uint8))
    (root / "dog" / "damaged.jpg").write_bytes(b"hello")
    return root


def test_the_command_writes_a_page_that_stands_alone_and_a_table(few_images: Path, tmp_path: Path) -> None:
    page, figures, table = (tmp_path / name for name in ("page.html", "study.json", "better.safetensors"))
    arguments = ["prompts", "study", "starter", "--data", str(few_images), "--templates", "simple"]
    arguments += ["-o", str(page), "--json", str(figures), "--apply", str(table)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception
    said = done.output
    assert "Few labels: 8 images a class" in said
    study = json.loads(figures.read_text())
    assert (study["study"]["images"], study["failed"]) == (33, 1)
    assert study["study"]["top1"] == pytest.approx(sum(item["right"] for item in study["study"]["classes"]) / 33)
    made = PromptTable.load(table)
    assert made.labels == ("<b>truck", "cat", "dog", "ship")
    assert made.name == "better"
    bundle = Bundle.open("starter")
    bundle.check_table(made)
    built = table_for_bundle(bundle, made.classes, made.templates, name="built")
    assert np.allclose(made.embeddings, built.embeddings, atol=1e-6)

    text = page.read_text(encoding="utf-8")
    outline = _Outline(text)
    assert not outline.open
    assert {"svg", "table", "figure"} <= set(outline.tags)
    assert "b" not in outline.tags  # the class is called so; it is no markup
    assert outline.addresses
    within = ("data:image/jpeg;base64,", "#")  # pictures, and the marks of a chart
    assert all(address.startswith(within) for address in outline.addresses)
    assert any(address.startswith(within[0]) for address in outline.addresses)
    assert not {"script", "link", "iframe"} & set(outline.tags)
    assert "://" not in re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # a chart's namespaces, which nobody fetches
    assert "prefers-color-scheme: dark" in text

    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, InputError)
    assert "exists already" in str(again.exception)


class Gone(list):
    """Images that can no longer be read: the page does without them."""

    def take(self, rows: list[int]) -> list[Item]:
        return [self[row] for row in rows]


def test_the_page_fits_a_phone_and_asks_for_nothing(tmp_path: Path) -> None:
    if not shutil.which("chromium"):
        pytest.skip("needs Debian's chromium, which is not installed")
    prompts, images, labels = World(7, names=3, templates=24).make(harmful=True)
    study = study_prompts(prompts, images, labels)  # type: ignore[arg-type]
    report = PromptReport("a", 0, prompts.rows.size, "tiny", "0" * 16, "fp32", 0, study, describe_machine())
    gone = Gone(files([tmp_path / "gone.jpg"] * len(images)))
    said = (images @ prompts.class_rows().T).argmax(axis=1)  # type: ignore[operator]
    page = prompt_page(Studied(report, prompts, gone, labels, said))  # type: ignore[arg-type]
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with Chromium(tmp_path / "profile") as chromium:
        for width in (390, 1280):
            chromium.open((tmp_path / "page.html").as_uri(), width=width)
            chromium.wait_for("document.readyState == 'complete' && document.querySelectorAll('svg').length > 50")
            assert chromium.evaluate("document.documentElement.scrollWidth") == width
        assert chromium.evaluate("performance.getEntriesByType('resource').length") == 0
        assert chromium.evaluate("getComputedStyle(document.querySelector('section')).borderRadius") == "10px"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{few}", "--classes", "cat, dog"], "among the classes, got <b>truck, ship"),
        (["--data", "{few}", "--classes", "cat", "--names", "n.json"], "expected names or classes, got both"),
        (["--data", "{few}", "--apply", "better"], "read-only: pass --apply FILE.safetensors"),
        (["--data", "{few}/nowhere"], "no such file or folder"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], message: str, few_images: Path) -> None:
    given = [argument.format(few=few_images) for argument in arguments]
    result = CliRunner().invoke(app, ["prompts", "study", "starter", "--templates", "simple", *given])
    assert message in str(result.exception)
