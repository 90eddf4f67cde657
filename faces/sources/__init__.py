"""Readers of face collections, one layout a file; `open_faces(spec)` recognises the layout."""

from faces.sources.reader import Record, Source, open_faces, recognise
from faces.sources.record import colour_warning
from faces.sources.verification_bin import read_bin

__all__ = ["Record", "Source", "colour_warning", "open_faces", "read_bin", "recognise"]
