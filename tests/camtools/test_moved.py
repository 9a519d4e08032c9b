"""What earlier versions called otherwise: old names and module paths work, and warn where they went."""

import importlib
import sys

import pytest

import camtools
from camtools import moved


@pytest.mark.parametrize(("name", "package"), moved.NAMES.items())
def test_old_names_of_camtools(name, package):
    with pytest.warns(DeprecationWarning, match=rf"^camtools\.{name} is {package}\.{name} now$") as caught:
        value = getattr(camtools, name)
    assert value is getattr(importlib.import_module(package), name)
    assert [warning.filename for warning in caught] == [__file__]
    assert name not in camtools.__all__


@pytest.mark.parametrize(("old", "new"), moved.MODULES.items())
def test_old_modules(monkeypatch, old, new):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=rf"^{old} is {new} now$"):
        module = importlib.import_module(old)
    names = [name for name in vars(importlib.import_module(new)) if not name.startswith("_")]
    assert names
    assert all(getattr(module, name) is getattr(importlib.import_module(new), name) for name in names)


def test_the_warning_is_at_the_line_that_imports(monkeypatch):
    monkeypatch.delitem(sys.modules, "camtools.layout", raising=False)
    with pytest.warns(DeprecationWarning) as caught:
        from camtools.layout import Layout  # noqa: F401
    assert [warning.filename for warning in caught] == [__file__]


def test_renamed_functions(monkeypatch):
    for old in ("camtools.inputs", "camtools.targets"):
        monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning):
        from camtools.inputs import Picture, Pictures, read_picture, read_pictures
        from camtools.targets import per_picture
    from camtools.classes.targets import per_image
    from camtools.images.read import InputImage, InputImages, read_image, read_images

    assert (Picture, Pictures, read_picture, read_pictures) == (InputImage, InputImages, read_image, read_images)
    assert per_picture is per_image


def test_what_never_was_is_still_an_error():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("camtools.nothing")
    with pytest.raises(AttributeError, match="nothing"):
        camtools.nothing
