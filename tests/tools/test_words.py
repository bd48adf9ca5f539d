"""WordNet's nouns become what a text projection knows before it sees an image; each part does what its name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress
from torch.nn.functional import normalize

from edgeclip.errors import TrainingError
from edgeclip.training.checkpoint.checkpoint import (
    load_checkpoint,
    load_checkpoint_text,
    load_two_tower,
    save_checkpoint,
)
from edgeclip.training.towers.heads import ConceptHead
from tools.starter.concepts import ClassSpace, WordTargets, fit_concepts
from tools.starter.recipe import Words, load_starter_recipe
from tools.starter.wordnet import WordNet, read_wordnet

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = Path("/usr/share/wordnet")

# Four kinds of thing in the format of wndb(5WN): entity above animal and tool, animal above hedgehog.
DATA = """\
  1 This line is indented, as the licence is.
00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | that which exists
00000002 03 n 02 animal 0 Living_Thing 1 002 @ 00000001 n 0000 + 00000009 v 0101 | it moves; "an animal ran"
00000003 03 n 01 tool 0 001 @ 00000001 n 0000 | used in the hand
00000004 03 n 01 hedgehog 0 001 @ 00000002 n 0000 | spiny; rolls up; "a hedgehog slept"
"""
INDEX = """\
  1 This line is indented, as the licence is.
animal n 1 1 @ 1 1 00000002
entity n 1 0 1 0 00000001
hedgehog n 2 1 @ 2 1 00000004 00000003
living_thing n 1 1 @ 1 0 00000002
tool n 1 1 @ 1 0 00000003
"""


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    (tmp_path / "data.noun").write_text(DATA)
    (tmp_path / "index.noun").write_text(INDEX)
    return read_wordnet(tmp_path)


def test_nouns_are_read_with_their_senses(wordnet: WordNet) -> None:
    assert wordnet.senses["n00000002"].nouns == ("animal", "living thing")
    assert wordnet.senses["n00000002"].above == ("n00000001",)
    assert wordnet.senses["n00000004"].gloss == "spiny; rolls up"
    assert wordnet.senses_of["hedgehog"] == ("n00000004", "n00000003")
    assert wordnet.ancestors["n00000004"] == {"n00000001", "n00000002", "n00000004"}


def test_likeness_is_lins(wordnet: WordNet) -> None:
    """Of four senses two lie at or below animal and one below hedgehog: 2 ln 2 / (ln 2 + ln 4)."""
    ids = [f"n0000000{i}" for i in (1, 2, 3, 4)]
    like = wordnet.likeness(ids, ids[1:])
    np.testing.assert_allclose(like[3], [2 / 3, 0, 1], atol=1e-6)
    np.testing.assert_allclose(like[2], [0, 1, 0], atol=1e-6)
    assert like[0].tolist() == [0, 0, 0]  # everything is an entity, which says nothing


def test_an_absent_or_broken_wordnet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="apt install wordnet-base"):
        read_wordnet(tmp_path)
    (tmp_path / "index.noun").write_text(INDEX)
    (tmp_path / "data.noun").write_text(DATA.replace("n 01 tool", "n xx tool"))
    with pytest.raises(TrainingError, match=r"WordNet 3\.0's nouns"):
        read_wordnet(tmp_path)
    (tmp_path / "data.noun").write_text(DATA[: DATA.index("00000004 03")])  # cut short: the index knows more
    with pytest.raises(TrainingError, match="whole files"):
        read_wordnet(tmp_path)


@pytest.mark.skipif(not (DEBIAN / "data.noun").is_file(), reason="needs Debian's package wordnet-base")
def test_debians_wordnet_knows_what_a_hedgehog_is_akin_to() -> None:
    wordnet = read_wordnet(DEBIAN)
    hedgehog, porcupine, cup = (wordnet.senses_of[noun][0] for noun in ("hedgehog", "porcupine", "cup"))
    assert len(wordnet.senses) == 82115
    some = list(wordnet.senses)[::20]
    like = wordnet.likeness([*some, hedgehog], [porcupine, cup])[-1]
    assert like[0] > 2 * like[1]


def _targets(nouns: int = 60, classes: int = 6, width: int = 16) -> tuple[WordTargets, torch.Tensor]:
    """Sentence vectors of nouns near those of the class that each means, and the classes' vectors."""
    torch.manual_seed(0)
    names = normalize(torch.randn(classes, width), dim=-1)
    owner = torch.arange(nouns) % classes
    vectors = normalize(names[owner, None] + 0.2 * torch.randn(nouns, 2, width), dim=-1)
    spread = torch.softmax(4 * torch.eye(classes), dim=-1)
    return WordTargets(vectors, spread[owner], spread, vectors[:10, 0]), names


def test_the_space_keeps_equal_distributions_together() -> None:
    targets, _ = _targets()
    space = ClassSpace(targets, 5)
    assert torch.allclose(space.directions.T @ space.directions, torch.eye(5), atol=1e-5)
    places = space.place(targets.class_classes)
    nearest = (space.place(targets.noun_classes) @ places.T).argmax(dim=1)
    assert nearest.tolist() == [i % 6 for i in range(60)]


def test_a_noun_lands_on_the_class_that_it_means() -> None:
    targets, names = _targets()
    captions = names[:, None].repeat(1, 3, 1)
    with Progress(disable=True) as bars:
        head, directions = fit_concepts(
            targets, names, torch.zeros(16), captions, Words(steps=60, batch_size=64, lr=1e-2), 5, bars
        )
    assert directions.shape == (6, 5)
    nouns = normalize(head(targets.nouns[:, 0]), dim=-1)
    classes = normalize(head(names), dim=-1)
    assert (nouns @ classes.T).argmax(dim=1).tolist() == [i % 6 for i in range(60)]


def test_a_concept_head_comes_back_from_a_checkpoint_and_the_classifier_stays_in_its_wheel(tmp_path: Path) -> None:
    two_tower = load_two_tower("starter")
    assert isinstance(two_tower.text_head, ConceptHead)
    with torch.no_grad():
        two_tower.text_head.concepts.bias += 0.5
    recipe = load_starter_recipe(ROOT / "tools" / "starter" / "starter.yaml")
    save_checkpoint(tmp_path / "again", two_tower, recipe=recipe)
    again, text = load_two_tower(str(tmp_path / "again")), load_checkpoint_text(str(tmp_path / "again"))
    for name, value in two_tower.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    expected = load_checkpoint(str(tmp_path / "again")).encode_text(["a hedgehog"])
    np.testing.assert_array_equal(text.encode_text(["a hedgehog"]), expected)
    assert (tmp_path / "again" / "weights.safetensors").stat().st_size < 1_300_000
