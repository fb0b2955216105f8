"""TensorBoard: a run's curves, and pictures of what was marked beside what is found."""

import keras
import numpy as np

from maskrcnn_edu.errors import InputError

PICTURES = 4  # of the validation images


class Board(keras.callbacks.Callback):
    """Writes Keras' `logs` (losses, learning rate, AP, the proposals' recall) at the end of an epoch, as curves.

    After a validation, also pictures of its first images: left the annotations, right the detections. On JAX too it
    needs TensorFlow, which is installed with the library, and the package tensorboard.

    Raises InputError if one of them is missing, or the file cannot be written.
    """

    def __init__(self, progress, folder, dataset=None):
        super().__init__()
        try:
            import tensorboard  # noqa: F401  tf.summary's scalars and images are its
            import tensorflow as tf
        except ModuleNotFoundError as error:
            raise InputError(f"--tensorboard needs the package {error.name}: pip install {error.name}.") from error
        self.progress, self.dataset, self.summary = progress, dataset, tf.summary
        self.folder, self.failure = folder, tf.errors.OpError
        self.writer = tf.summary.create_file_writer(str(folder))

    def on_epoch_end(self, epoch, logs=None):
        try:
            self._write(logs)
        except self.failure as error:
            raise InputError(
                f"TensorBoard's file in {self.folder} could not be written ({error.message}); make room or mend the "
                "folder, then go on."
            ) from error

    def _write(self, logs):
        with self.writer.as_default(step=self.progress.step):
            for name, value in logs.items():
                self.summary.scalar(name, float(np.mean(value)))
            if self.dataset is not None and "proposal_recall" in logs:
                for i in range(min(PICTURES, len(self.dataset))):
                    self.summary.image(f"image {self.dataset.image_id(i)}", beside(self.model, self.dataset, i)[None])
        self.writer.flush()


def beside(model, dataset, i):
    """Image `i` twice, as (H, W, 3) uint8: with its annotations, and with what the model detects."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from maskrcnn_edu import plots

    image = dataset.image(i)
    boxes, classes, masks = dataset.instances(i, image.shape[:2])[:3]
    (found,) = model.detect([image])
    figure = Figure((12, 6 * image.shape[0] / image.shape[1]), dpi=80)
    left, right = (figure.add_axes((x, 0, 0.5, 1)) for x in (0, 0.5))
    plots.instances(image, boxes=boxes, classes=classes, masks=masks, class_names=dataset.class_names, ax=left)
    plots.instances(image, found, class_names=model.class_names, ax=right)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
