"""What ``cv2.getBuildInformation()`` gives in, whether OpenCV was built with a feature out."""

from __future__ import annotations

import re


def built_with(information: str, feature: str) -> bool:
    """Whether a line ``feature: YES`` stands in the build's description, e.g. for ``"GStreamer"``."""
    return bool(re.search(rf"^\s*{re.escape(feature)}:\s+YES", information, re.MULTILINE))
