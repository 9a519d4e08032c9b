"""What a record makes of what it is given."""

import torch
from PIL import Image

from camtools.datasets import Record


def test_what_is_left_out_is_filled_in():
    nowhere = torch.zeros(2, 3, dtype=torch.bool)
    record = Record(Image.new("RGB", (3, 2)), torch.tensor([4, 1, 4]), torch.zeros(3, 4), None, nowhere, "a")
    assert record.ignore is None and record.difficult.tolist() == [False] * 3
    assert record.label == 4 and record.classes == [4, 1] and record.size == (3, 2)
    somewhere = nowhere.clone()
    somewhere[1, 2] = True
    assert Record(record.image, record.labels, record.boxes, None, somewhere, "a").ignore is somewhere
