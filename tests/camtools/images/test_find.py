"""Which images the command line's paths mean, and where the results of each go."""

import io
import tarfile

import fsspec
import pytest

from camtools.errors import InputError
from camtools.images.find import find_images, find_jobs, natural_key


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Images by name only; nothing here reads them."""
    names = "a/bird1.jpg a/bird10.jpg a/bird2.JPG a/deep/er/bird1.png a/notes.txt b/bird1.jpg a/.hidden.jpg"
    names += " a/.cache/bird.jpg c/x.jpg c/x.png c/x.y.png d/e.jpg d/e/f.jpg"
    for name in names.split():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pairs(*paths, out=None):
    return [(job.path.as_posix(), job.folder) for job in find_jobs(paths, out)]


def test_natural_order():
    names = ["b/1", "a10", "a2", "A1", "a2b", "a/2", "a/10"]
    assert sorted(names, key=natural_key) == ["a/2", "a/10", "A1", "a2", "a2b", "a10", "b/1"]


def test_one_file(tree):
    assert pairs("a/bird1.jpg") == [("a/bird1.jpg", "bird1")]


def test_a_named_file_need_not_look_like_an_image(tree):
    assert pairs("a/notes.txt") == [("a/notes.txt", "notes")]


def test_a_folder_with_its_sub_folders(tree):
    assert pairs("a") == [
        ("a/bird1.jpg", "bird1"),
        ("a/bird2.JPG", "bird2"),
        ("a/bird10.jpg", "bird10"),
        ("a/deep/er/bird1.png", "deep/er/bird1"),
    ]


def test_same_names_in_several_folders_do_not_collide(tree):
    assert pairs("a/bird1.jpg", "b") == [("a/bird1.jpg", "a/bird1"), ("b/bird1.jpg", "b/bird1")]


def test_exports_call_images_by_their_paths_below_what_was_named(tree):
    assert [job.file for job in find_jobs(["a"])] == ["bird1.jpg", "bird2.JPG", "bird10.jpg", "deep/er/bird1.png"]
    assert [job.file for job in find_jobs(["a/bird1.jpg", "b"])] == ["a/bird1.jpg", "b/bird1.jpg"]


def test_same_names_with_several_suffixes_do_not_collide(tree):
    assert pairs("c") == [("c/x.jpg", "x-jpg"), ("c/x.png", "x-png"), ("c/x.y.png", "x.y")]


def test_an_image_and_a_folder_of_one_name_do_not_collide(tree):
    assert pairs("d") == [("d/e.jpg", "e-jpg"), ("d/e/f.jpg", "e/f")]


def test_a_pattern(tree):
    assert pairs("*/bird1.*") == [("a/bird1.jpg", "a/bird1"), ("b/bird1.jpg", "b/bird1")]
    assert pairs("a/**/*.png") == [("a/deep/er/bird1.png", "deep/er/bird1")]
    assert pairs(f"{tree}/a/bird[12].*") == [(f"{tree}/a/bird1.jpg", "bird1"), (f"{tree}/a/bird2.JPG", "bird2")]


def test_a_pattern_that_matches_folders_takes_the_images_in_them(tree):
    assert pairs("[ab]/de*") == [("a/deep/er/bird1.png", "a/deep/er/bird1")]


def test_a_file_whose_name_has_magic_characters(tree):
    (tree / "b" / "bird[1].jpg").touch()
    assert pairs("b/bird[1].jpg") == [("b/bird[1].jpg", "bird[1]")]


def test_every_image_once(tree):
    assert pairs("b", "b/bird1.jpg", "b/*.jpg", str(tree / "b")) == [("b/bird1.jpg", "bird1")]


def test_results_of_an_earlier_run_are_no_images(tree):
    out = tree / "a" / "out"
    (out / "bird1").mkdir(parents=True)
    (out / "bird1" / "overlay.png").touch()
    (out / "bird1" / "manifest.json").touch()
    (out / "manifest.json").touch()
    assert len(pairs("a", out=out)) == len(pairs("a/**", out=out)) == 4
    assert len(pairs("a")) == 5


def test_images_beside_their_results_are_images(tree):
    (tree / "b" / "bird1").mkdir()
    (tree / "b" / "bird1" / "overlay.png").touch()
    (tree / "b" / "bird1" / "manifest.json").touch()
    (tree / "b" / "manifest.json").touch()
    assert pairs("b", out=tree / "b") == [("b/bird1.jpg", "bird1")]


def test_linked_folders_are_not_followed_in_circles(tree):
    (tree / "b" / "again").symlink_to(tree / "b")
    assert pairs("b") == [("b/bird1.jpg", "bird1")]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.jpg", "There is no file or folder nowhere.jpg. Name images, folders, or patterns"),
        ("*.gif", "The pattern *.gif matches no images"),
        ("empty", "The folder empty holds no images (.avif, .bmp"),
    ],
)
def test_refuses(tree, path, words):
    (tree / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        find_jobs(["a", path])
    assert words in str(caught.value)


def test_folders_are_always_distinct(tree):
    place = tree / "many"
    place.mkdir()
    for name in ("x", "x.jpg", "X.JPG", "x-jpg.png", "x-jpg", "manifest.json.png", "x-2.png"):
        (place / name).touch()
    folders = [job.folder.casefold() for job in find_jobs([str(p) for p in place.iterdir()])]
    assert len(set(folders)) == len(folders) == 7
    assert "manifest.json" not in folders


def test_images_of_shards_are_read_one_after_another(tmp_path):
    for number in (10, 9):
        with tarfile.open(tmp_path / f"birds-{number}.tar", "w") as archive:
            for name in (f"{number}/b.jpg", f"{number}/a.PNG", f"{number}/b.cls", f"{number}/b.json"):
                member = tarfile.TarInfo(name)
                member.size = len(name)
                archive.addfile(member, io.BytesIO(name.encode()))
    found = list(find_images(f"{tmp_path}/birds-*.tar"))
    assert [image.data for image in found] == [b"9/b.jpg", b"9/a.PNG", b"10/b.jpg", b"10/a.PNG"]
    assert found[0].name == f"{tmp_path}/birds-9.tar/9/b.jpg"
    (tmp_path / "birds-11.tar").write_bytes(b"no archive")
    shards = find_images(tmp_path / "birds-11.tar")
    with pytest.raises(InputError, match=r"birds-11\.tar cannot be read .* expected a whole .tar"):
        next(shards)
    with pytest.raises(InputError, match="There is no shard"):
        find_images(tmp_path / "missing.tar")


def test_folders_and_patterns_of_a_store():
    fsspec.filesystem("memory").pipe({f"/flock/{name}": b"" for name in ("b10.jpg", "b9.jpg", "deep/a.png", "b.txt")})
    found = find_images("memory://flock")
    assert found == ["memory:///flock/b9.jpg", "memory:///flock/b10.jpg", "memory:///flock/deep/a.png"]
    assert find_images("memory://flock/*9.jpg") == ["memory:///flock/b9.jpg"]
    with pytest.raises(InputError, match=r"'memory://flock/\*\.gif' holds no images"):
        find_images("memory://flock/*.gif")
    with pytest.raises(InputError, match=r"'nostore://flock' cannot be listed .*Protocol not known"):
        find_images("nostore://flock")
