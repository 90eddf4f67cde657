"""Trained models as files that other runtimes run, each proved equal to the model it came from.

Importing this package loads no torch: `export.load(path).embed(images)` works where only a runtime is
installed.
"""

from export.runtimes import Artifact, load

__all__ = ["Artifact", "load"]
