"""A machine's files in, the cameras that Linux shows out: USB and CSI, by the index that OpenCV takes."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from edgeclip.devices.tree import Tree

# Codecs, scalers and image processors, which are video devices to V4L2 too.
_NO_CAMERA = ("bcm2835-", "pispbe", "rpivid", "rpi-hevc-dec", "rockchip-", "hantro")
# Receivers of CSI ports: a Jetson's, and a Raspberry Pi's up to 4 and from 5 on.
_CSI = ("vi-output", "unicam", "rp1-cfe")


class VideoDevice(msgspec.Struct, frozen=True):
    """A video device that gives frames.

    Attributes:
        device: ``/dev/video0``.
        name: as its driver calls it.
        kind: how it is connected; what is not known to be a CSI port's receiver counts as USB.
        sensor: of a CSI camera, ``imx219``; None if the name does not say.
    """

    device: str
    name: str
    kind: Literal["usb", "csi"]
    sensor: str | None = None


def read_cameras(tree: Tree) -> tuple[VideoDevice, ...]:
    """The cameras of a machine, in the order of their numbers.

    A USB camera has a second device for its metadata; only index 0 of each gives frames.
    """
    cameras = []
    for path in tree.glob("sys/class/video4linux/video*"):
        name, index = tree.text(f"{path}/name"), tree.number(f"{path}/index")
        if name is None or index not in (None, 0) or name.startswith(_NO_CAMERA):
            continue
        sensor = re.match(r"vi-output, (\S+)", name)
        kind: Literal["usb", "csi"] = "csi" if name.startswith(_CSI) else "usb"
        cameras.append(VideoDevice(f"/dev/{path.rpartition('/')[2]}", name, kind, sensor[1] if sensor else None))
    return tuple(cameras)
