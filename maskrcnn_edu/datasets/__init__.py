"""Datasets: something to subclass, drawn shapes, COCO; and the loader that turns them into batches."""

from maskrcnn_edu.datasets.coco import CocoDataset
from maskrcnn_edu.datasets.dataset import ConcatenatedDataset, Dataset, Subset
from maskrcnn_edu.datasets.image_file import read_image
from maskrcnn_edu.datasets.loader import loader
from maskrcnn_edu.datasets.shapes import ShapesDataset

__all__ = ["CocoDataset", "ConcatenatedDataset", "Dataset", "ShapesDataset", "Subset", "loader", "read_image"]
