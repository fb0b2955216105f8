"""Published weights: fetched, read without running what they hold, and loaded so that nothing is skipped in silence."""

from maskrcnn_edu.weights.loading import Report, load
from maskrcnn_edu.weights.published import fetch
from maskrcnn_edu.weights.readers import read

__all__ = ["Report", "fetch", "load", "read"]
