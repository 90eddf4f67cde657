"""Readers of face collections, one layout a file; `open_faces(spec)` recognises the layout."""

from faces.sources.reader import Record, open_faces, recognise

__all__ = ["Record", "open_faces", "recognise"]
