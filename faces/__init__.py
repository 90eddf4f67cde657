"""Faces: reading, aligning, degrading and comparing them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faces.dataset import Faces
    from faces.sources import open_faces

__all__ = ["Faces", "open_faces"]


def __getattr__(name: str) -> Any:
    # Lazy, so that an exported artifact loads where neither OpenCV nor dlib is installed.
    if name == "Faces":
        from faces.dataset import Faces

        return Faces
    if name == "open_faces":
        from faces.sources import open_faces

        return open_faces
    raise AttributeError(f"module 'faces' has no attribute {name!r}")
