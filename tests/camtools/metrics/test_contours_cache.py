"""What numba keeps on disk is never that of an older source."""

import shutil

import camtools.metrics.contours

CALLER = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import contours

several = np.zeros(256)
contours._write_hole(np.array([2, 2, 3, 3, 4, 0], dtype=np.int32), 9, np.array([[1, 1, 5, 5]]), several, 20, 20)
print(several[0], sum(contours._write_hole.stats.cache_hits.values()))
"""


def test_a_change_of_a_function_reaches_its_callers(tmp_path, run_python):
    """`_write_hole` calls `best_iou`; numba alone looks at the caller's file only, which here is the same."""
    source = tmp_path / "contours.py"
    shutil.copy(camtools.metrics.contours.__file__, source)

    def called():
        done = run_python("-c", CALLER, tmp_path, env={"NUMBA_CACHE_DIR": str(tmp_path / "cache")})
        assert done.returncode == 0, done.stderr
        value, hits = done.stdout.split()
        return float(value), int(hits)

    first = called()
    assert first == (1.0, 0)
    assert called() == (1.0, 1)  # from the cache
    text = source.read_text()
    line = "    return best\n"
    assert text.count(line) == 1
    source.write_text(text.replace(line, "    return 0.0 \n"))
    assert called() == (0.0, 0)
