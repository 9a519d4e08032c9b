"""Class names and targets."""

import json

import numpy as np
import pytest
import torch

from camtools.classes.names import default_names, imagenet_names, imagenet_synsets, load_names, resolve_target
from camtools.errors import TargetError
from camtools_adapters.timm import timm_names

BIRDS = ["goldfinch", "house finch", "Great_Tit", "7"]


def test_imagenet_names_are_in_the_order_of_the_sorted_wnids():
    names = imagenet_names()
    assert len(names) == len(set(names)) == 1000
    assert [names[i] for i in (0, 11, 281, 999)] == ["tench", "goldfinch", "tabby", "toilet tissue"]


def test_default_names_need_a_thousand_classes():
    assert default_names(1000) == imagenet_names()
    assert default_names(200) is None
    assert default_names(None) is None


@pytest.mark.parametrize(
    ("target", "index"),
    [
        (0, 0),
        (3, 3),
        (np.int64(2), 2),
        (torch.tensor(1), 1),
        ("2", 2),
        (" 1 ", 1),
        ("goldfinch", 0),
        ("HOUSE FINCH", 1),
        ("house-finch", 1),
        ("house_finch", 1),
        ("great tit", 2),
        ("7", 3),  # a name that looks like an index is the name
    ],
)
def test_resolve_target(target, index):
    assert resolve_target(target, BIRDS, 4) == index


@pytest.mark.parametrize(
    "target", ["goldfinch", "n01531178", "N01531178", "Carduelis carduelis", "carduelis-carduelis", "11"]
)
def test_imagenet_targets_by_name_wnid_and_synonym(target):
    assert resolve_target(target, imagenet_names()) == 11


def test_timms_wording_of_imagenet_counts_as_imagenet():
    from timm.data import ImageNetInfo

    names = ImageNetInfo().label_descriptions()
    assert names[0] == "tench, Tinca tinca"
    assert (
        resolve_target("tench", names) == resolve_target("tinca_tinca", names) == resolve_target(names[0], names) == 0
    )


def test_a_thousand_classes_without_names_are_imagenets():
    assert resolve_target("n01440764", None, 1000) == 0
    assert resolve_target("tench", None, 1000) == 0


def test_wnids_mean_nothing_for_other_classes():
    with pytest.raises(TargetError, match="no class named 'n01440764'"):
        resolve_target("n01440764", BIRDS)


def test_a_name_in_another_letter_case_is_second_to_the_exact_one():
    assert resolve_target("crane", ["Crane", "crane"]) == 1


@pytest.mark.parametrize("names", [None, imagenet_names(), imagenet_synsets()[1]], ids=["none", "torchvision", "timm"])
def test_a_word_for_two_of_imagenets_classes_is_refused_with_both(names):
    words = r"2 classes, 134 \(crane bird, n02012849\), 517 \(crane, n03126707\). Give the index"
    with pytest.raises(TargetError, match=words):
        resolve_target("crane", names, 1000)
    with pytest.raises(TargetError, match=r"638 \(maillot, n03710637\), 639 \(maillot tank suit, n03710721\)"):
        resolve_target("maillot", names, 1000)
    assert [resolve_target(text, names, 1000) for text in ("n02012849", "517", "partridge")] == [134, 517, 86]


def test_a_listed_name_is_clear_where_lists_are_matched():
    assert resolve_target("crane", imagenet_names(), listed=True) == 517
    assert [resolve_target(text, imagenet_names()) for text in ("crane bird", "Cardigan", "cardigan")] == [
        134,
        264,
        474,
    ]


@pytest.mark.parametrize(
    ("target", "names", "count", "words"),
    [
        (4, BIRDS, 4, "Class index 4 is out of range: this model's classes are numbered 0 to 3"),
        (-1, BIRDS, 4, "Class index -1 is out of range: this model's classes are numbered 0 to 3"),
        (-1, None, None, "Class index -1 is out of range: this model's classes are numbered 0 upwards"),
        ("1000", None, 1000, "Class index 1000 is out of range: this model's classes are numbered 0 to 999"),
        ("goldfish", BIRDS, 4, "no class named 'goldfish' among this model's 4. Did you mean 'goldfinch'?"),
        ("finch", BIRDS, 4, "Did you mean 'goldfinch' or 'house finch'?"),
        ("zzz", BIRDS, 4, "Names are goldfinch, house finch, Great_Tit, 7."),
        ("goldfinch", None, 4, "this model's 4 classes have no names. Give an index, or the names"),
        ("goldfinch", None, None, "this model's classes have no names"),
        (True, BIRDS, 4, "A class is an index or a name, not True (bool)"),
        (1.0, BIRDS, 4, "A class is an index or a name, not 1.0 (float)"),
        (None, BIRDS, 4, "A class is an index or a name, not None (NoneType)"),
        ("tit", ["tit", "tit"], 2, "'tit' names 2 classes, 0, 1. Give the index"),
    ],
)
def test_resolve_target_refuses(target, names, count, words):
    with pytest.raises(TargetError) as caught:
        resolve_target(target, names, count)
    assert words in str(caught.value)


def test_load_names_from_lines(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffgoldfinch\r\nhouse finch \nMésange\n\n".encode())
    assert load_names(path) == ("goldfinch", "house finch", "Mésange")


@pytest.mark.parametrize("data", [["a", "b", "c"], {"1": "b", "0": "a", "2": "c"}])
def test_load_names_from_json(tmp_path, data):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(data))
    assert load_names(str(path)) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "holds no class names"),
        ("a.json", b"[]", "holds no class names"),
        ("a.txt", b"one\n\nthree\n", "line 2 is blank"),
        ("a.txt", b"\xff\xfe\x00", "it is not UTF-8 text"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b"[1, 2]", "is not a JSON list of names"),
        ("a.json", b'"tench"', "is not a JSON list of names"),
        ("a.json", b'{"0": "a", "2": "c"}', "needs the indices 0 to 1 as keys, but 1 is wrong"),
        ("a.json", b'{"x": "a"}', "needs the indices 0 to 0"),
    ],
)
def test_load_names_refuses(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TargetError) as caught:
        load_names(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_load_names_names_a_missing_file(tmp_path):
    with pytest.raises(TargetError, match=r"cannot be read from .*none\.txt: No such file"):
        load_names(tmp_path / "none.txt")


class Metadata:
    """What timm tells of a model."""

    def __init__(self, num_classes, label_names=None):
        self.num_classes = num_classes
        self.pretrained_cfg = {"num_classes": num_classes, "label_names": label_names}


def test_timm_names_come_from_the_model_or_its_subset_of_imagenet():
    assert timm_names(Metadata(2, ["cat", "dog"])) == ("cat", "dog")
    assert timm_names(Metadata(1000)) == imagenet_names()
    assert timm_names(Metadata(7)) is None
    twelve_thousand = timm_names(Metadata(11821))
    assert twelve_thousand is not None
    assert len(twelve_thousand) == 11821
    assert not any("," in name for name in twelve_thousand)


def test_timm_names_of_another_count_are_not_used():
    assert timm_names(Metadata(3, ["cat", "dog"])) is None


def test_a_number_of_any_length_is_no_class():
    with pytest.raises(TargetError, match="There is no class named"):
        resolve_target("9" * 5000, ["ant", "bee"])
