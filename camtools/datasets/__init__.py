"""Data sets with their truth: every one yields the same `Record`."""

from camtools.datasets.base import ListedDataset, RecordDataset
from camtools.datasets.box_folder import BoxFolder
from camtools.datasets.coco import COCO
from camtools.datasets.cub import CUB
from camtools.datasets.ilsvrc import ILSVRC
from camtools.datasets.labelled import ImageFolder, LabelledImages
from camtools.datasets.openimages import OpenImages30k
from camtools.datasets.pets import OxfordPets
from camtools.datasets.record import Record
from camtools.datasets.scenes import Scenes
from camtools.datasets.spec import DATA_SOURCES, DataSource, open_dataset, register_dataset
from camtools.datasets.voc import VOC
from camtools.datasets.wsol import WSOL

__all__ = [
    "COCO",
    "CUB",
    "DATA_SOURCES",
    "ILSVRC",
    "VOC",
    "WSOL",
    "BoxFolder",
    "DataSource",
    "ImageFolder",
    "LabelledImages",
    "ListedDataset",
    "OpenImages30k",
    "OxfordPets",
    "Record",
    "RecordDataset",
    "Scenes",
    "open_dataset",
    "register_dataset",
]
