"""raydet: distributed multi-modal object detection on Ray, and fusion comparisons that can be trusted.

Importing this package imports neither torch nor ray, so that the command line answers at once.
"""

__version__ = "0.1.0"
