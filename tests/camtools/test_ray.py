"""Two local workers of Ray give what one process gives, also where one is killed, and go on with what is done."""

import numpy as np
import pytest
from PIL import Image

import camtools
from camtools.errors import InputError
from camtools.loading import load_model

pytestmark = pytest.mark.slow  # a process of Ray's takes seconds to start, and there are some twenty
ray = pytest.importorskip("ray", reason="needs ray, the extra of that name", exc_type=ImportError)


@pytest.fixture(scope="module")
def place(tmp_path_factory, colours):
    """A folder with nets.py, and six images in pics/: a square on black, the fourth turned by EXIF, the last broken."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "nets.py").write_text(colours)
    (folder / "pics").mkdir()
    for number in range(5):
        pixels = np.zeros((64, 80, 3), np.uint8)
        pixels[8:24, 8 * number : 8 * number + 16, number % 3] = 255
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 3 else 1
        Image.fromarray(pixels).save(folder / f"pics/{number}.png", exif=exif)
    (folder / "pics/5.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # workers are at 15 else, and starve beside other tests
        yield from started()


def started():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def alone(place):
    """What one process finds."""
    loaded = load_model(f"{place}/nets.py:colours", "random")
    explainer = camtools.Explainer(loaded.model, transform=loaded.preprocess, class_names=loaded.class_names)
    found = explainer.stream(sorted(map(str, (place / "pics").iterdir()))[:5])
    return camtools.results_frame(found).rename(columns={"file": "path"})


def explained(place, images="pics", **options):
    import camtools.ray

    given = {"weights": "random", "workers": 2, "batch_size": 2} | options
    rows = camtools.ray.explain(str(place / images), f"{place}/nets.py:colours", **given)
    return rows.to_pandas().sort_values("path", ignore_index=True)


def same(found, alone):
    assert found.path.tolist() == [*alone.path, alone.path[0].replace("0.png", "5.png")]
    assert found.error.isna().tolist() == [True] * 5 + [False] and "5.png" in found.error[5]
    for name in ("height", "width", "name", "x0", "y0", "x1", "y1", "pixels"):
        assert found[name][:5].tolist() == alone[name].tolist(), name
    assert np.allclose(found.score[:5], alone.score, atol=1e-6)
    assert found.height[3] == 80  # turned


def test_two_workers_find_what_one_process_finds(cluster, place, alone):
    same(explained(place), alone)
    assert explained(place, "pics/0.png", top_k=3).name.tolist() == ["red", "green", "blue"]


def test_a_killed_worker_is_replaced(cluster, place, alone):
    (place / "deadly").touch()
    same(explained(place), alone)
    assert not (place / "deadly").exists()


def test_what_is_done_stays_done(cluster, place, alone):
    out = place / "out"
    explained(place, "pics/2.png", out=str(out))
    files = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(files) == 1
    with pytest.raises(InputError, match="holds files already: expected an empty folder, or resume=True"):
        explained(place, out=str(out))
    same(explained(place, out=str(out), resume=True), alone)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    before = sorted(out.glob("*.parquet"))
    same(explained(place, out=str(out), resume=True), alone)
    assert sorted(out.glob("*.parquet")) == before


def test_rows_could_be_lost(place):
    for options in ({}, {"out": "x", "top_k": 2}, {"out": "x", "target": [0, 1]}):
        with pytest.raises(InputError, match="resume=True: expected out=, and one class per image"):
            explained(place, resume=True, **options)
