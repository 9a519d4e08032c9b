from __future__ import annotations

from pathlib import Path

import pytest

from camtools import InputError
from camtools.classes.names import imagenet_names
from camtools.datasets.lists import (
    FolderLayout,
    class_names,
    keyed,
    read_rows,
    read_table,
    relative_name,
    to_box,
    to_int,
)


def test_the_layout_is_shown(tmp_path):
    layout = FolderLayout("Birds", "\nROOT/\n  list.txt\n", "birds.example")
    (tmp_path / "second").mkdir()
    assert layout.first([tmp_path / "first", tmp_path / "second"], "folder") == tmp_path / "second"
    with pytest.raises(InputError) as caught:
        layout.first([tmp_path / "a", tmp_path / "b"], "list of birds")
    assert str(caught.value) == (
        f"Birds: no list of birds: looked for {str(tmp_path / 'a')!r} or {str(tmp_path / 'b')!r}. "
        f"Expected this layout:\nROOT/\n  list.txt\nGet it from birds.example; nothing is downloaded for you"
    )


def test_rows(tmp_path, write):
    path = write(tmp_path / "list.txt", "# head", "1 a", "", "2 b c ")
    assert list(read_rows(path, [2], comment="#")) == [["1", "a", f"{path}, line 2"], ["2", "b c", f"{path}, line 4"]]
    assert [row[0] for row in read_rows(path, [1], comment="#")] == ["1 a", "2 b c"]
    comma = write(tmp_path / "comma.txt", "a, b ,", "c,d,e")
    assert [row[:3] for row in read_rows(comma, [3], ",")] == [["a", "b", ""], ["c", "d", "e"]]


def test_wrong_rows_are_named(tmp_path, write):
    with pytest.raises(InputError, match=r"list\.txt, line 2: 'b' has 1 fields, expected 2, separated by spaces"):
        list(read_rows(write(tmp_path / "list.txt", "a 1", "b"), [2]))
    with pytest.raises(InputError, match=r"line 1: 'a,b' has 2 fields, expected 3 or 5, separated by ','"):
        list(read_rows(write(tmp_path / "list.txt", "a,b"), [3, 5], ","))
    with pytest.raises(InputError, match=r"none\.txt cannot be read \(No such file"):
        list(read_rows(tmp_path / "none.txt", [1]))
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")
    with pytest.raises(InputError, match=r"latin\.txt is not UTF-8 text"):
        list(read_rows(tmp_path / "latin.txt", [1]))


def test_tables(tmp_path, write):
    path = write(tmp_path / "t.csv", "\ufeffB, A,other", '1,"x,y",z', "", "2,w,z")
    assert list(read_table(path, ["a", "b"], ["c"])) == [(["x,y", "1", ""], 2), (["w", "2", ""], 4)]
    with pytest.raises(
        InputError, match=r"t\.csv, line 1: no column 'c', 'd' in 'b,a,other'; expected the header c,a,d,e"
    ):
        list(read_table(path, ["c", "a", "d"], ["e"]))
    with pytest.raises(InputError, match=r"t\.csv, line 2: 1 fields, expected 2: a,b"):
        list(read_table(write(path, "a,b", "1"), ["a"]))
    with pytest.raises(InputError, match=r"no column 'a' in ''"):
        list(read_table(write(path), ["a"]))


def test_fields():
    assert to_int("7", "it", "here") == 7
    assert to_box(["1", "2", "3.5", "4"], "here") == (1, 2, 3.5, 4)
    assert to_box(["1", "2", "3.5", "4"], "here", sides=True) == (1, 2, 4.5, 6)
    for text in ("x", "-1", "9", "1.0"):
        with pytest.raises(InputError, match=rf"here: it is '{text}', expected a whole number, 0 to 8"):
            to_int(text, "it", "here", high=8)
    with pytest.raises(InputError, match=r"it is '0', expected a whole number, 1 or more"):
        to_int("0", "it", "here", 1)
    with pytest.raises(InputError, match=r"here: the box is '1,a,3,4', expected four numbers, x0,y0,x1,y1"):
        to_box(["1", "a", "3", "4"], "here")
    for box in (["1", "2", "1", "4"], ["1", "2", "3", "nan"], ["1", "2", "3", "inf"]):
        with pytest.raises(InputError, match=r"is empty, expected x0 < x1 and y0 < y1"):
            to_box(box, "here")


def test_names():
    assert relative_name("a\\b/c.jpg", "here") == "a/b/c.jpg"
    for name in ("", "/etc/a.jpg", "a/../../b.jpg"):
        with pytest.raises(InputError, match=r"here: the file is .*, expected a path relative to the images' folder"):
            relative_name(name, "here")
    assert keyed({"a": 1, "b": 2}, ["b", "a"], Path("f")) == [2, 1]
    with pytest.raises(InputError, match=r"f has no line for 'c': expected one for every image"):
        keyed({"a": 1}, ["c"], Path("f"))


def test_class_names(tmp_path, write):
    assert class_names(["b", "a"]) == ("b", "a")
    assert class_names("imagenet") == imagenet_names()
    assert class_names(write(tmp_path / "names.txt", "x", "y")) == ("x", "y")
    with pytest.raises(InputError, match=r"classes='none.txt': .*cannot be read"):
        class_names("none.txt")
    with pytest.raises(InputError, match="classes is empty"):
        class_names([])
