"""Where inputs come from: images, videos, cameras, ``.npz`` files, or random numbers.

- ``uri`` reads what the user gave and opens it.
- ``base`` says what a source is. A recorded one never drops a sample and can be run through again;
  a live one (``live``) gives the newest frame and counts those that nobody was ready for.
- ``arrays``, ``images``, ``video``, ``v4l2`` and ``gstreamer`` each know one kind.

from runtime.sources import open_source
"""

from __future__ import annotations

from runtime.sources.base import Sample, Source
from runtime.sources.images import read_image
from runtime.sources.uri import open_source

__all__ = ["Sample", "Source", "open_source", "read_image"]
