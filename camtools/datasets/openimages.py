"""OpenImages30k (Choe et al. 2020): Open Images images with masks and ignored regions, as wsolevaluation has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any, Literal

from camtools.checks import one_of
from camtools.datasets.base import TargetKind
from camtools.datasets.lists import FolderLayout, folder, read_rows
from camtools.datasets.wsol import WSOL

_LAYOUT = FolderLayout(
    "OpenImages30k",
    """
OpenImages/                                    (wsolevaluation's dataset/OpenImages)
  {train,val,test}/0bt_c3/0a51958fcd523ae4.jpg, 0a51958fcd523ae4_m0bt_c3_41344f12.png, 0a51958fcd523ae4_ignore.png ...
  metadata/{train,val,test}/{image_ids,class_labels,localization}.txt     (or wsolevaluation's metadata/OpenImages)
""",
    "github.com/clovaai/wsolevaluation (OpenImages30k images and segmentation masks; metadata/OpenImages)",
)
_SPLITS = {"train": "train", "val": "val", "test": "test", "train-weaksup": "train", "train-fullsup": "val"}


class OpenImages30k(WSOL):
    """OpenImages30k: 29,819 train, 2,500 val and 5,000 test images of 100 classes, one class per image.

    Records are those of `WSOL`: a mask for every object, what is ignored, and the smallest boxes around the masks. The
    train split has classes only. Classes are named by their Open Images codes without "/m/" ("0bt_c3"), which is all
    that the data set says of them; pass `classes` for names to read.

    Args:
        root: The folder with train/, val/ and test/.
        split: "train" (the paper's train-weaksup), "val" (train-fullsup) or "test"; either name will do.
        metadata: The folder with train/, val/ and test/ of text files, where it is neither `root`/metadata nor
            `root`/../../metadata/OpenImages.
        classes: See `WSOL`.
        transform: See `RecordDataset`.
        target: See `RecordDataset`.

    Raises:
        InputError: A file or folder is missing (the message shows the layout), or a line is wrong.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "val", "test", "train-weaksup", "train-fullsup"] = "test",
        *,
        metadata: str | os.PathLike[str] | None = None,
        classes: str | os.PathLike[str] | Iterable[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target: TargetKind = "record",
    ) -> None:
        name = _SPLITS[one_of("split", split, list(_SPLITS))]
        base = folder(root)
        _LAYOUT.first([base / name], f"folder of the {split} images")
        places = [base / "metadata", base.parent.parent / "metadata" / "OpenImages"]
        texts = _LAYOUT.first([place / name for place in ([folder(metadata)] if metadata else places)], "metadata")
        for file in ("image_ids.txt", "class_labels.txt", *(() if name == "train" else ("localization.txt",))):
            _LAYOUT.first([texts / file], "list")
        if classes is None:
            folders = {
                int(label): PurePosixPath(path).parent.name
                for path, label, _ in read_rows(texts / "class_labels.txt", [2], ",")
                if label.isdecimal()  # what is not, is the base's error
            }
            if folders:
                classes = [folders.get(index, str(index)) for index in range(max(folders) + 1)]
        super().__init__(texts, base, classes=classes, transform=transform, target=target)
