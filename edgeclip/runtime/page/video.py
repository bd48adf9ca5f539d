"""The latest frame of a source in, JPEGs for the browsers that watch it out; none are made while nobody watches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from functools import partial

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.page.state import Latest, PageState
from edgeclip.runtime.sources.base import Frame

BOUNDARY = "edgeclip-frame"
_WIDTH = 960
_QUALITY = 80
_GAP_S = 1 / 15
_SETTLE_S = 0.2
_LOOK_S = 1.0  # how often a viewer of a silent source looks whether the run is over


class JpegVideo:
    """One source's video as JPEGs, at most 15 a second, each made once for all viewers.

    Args:
        page: of the run.
        latest: of the source.
        executor: where JPEGs are made; not the server's loop.
    """

    def __init__(self, page: PageState, latest: Latest, executor: Executor) -> None:
        self._page = page
        self._latest = latest
        self._executor = executor
        self._making = asyncio.Lock()
        self._reformatter = VideoReformatter()
        self._count = 0
        self._jpeg = b""
        self._made = 0.0

    async def parts(self) -> AsyncIterator[bytes]:
        """The body of a ``multipart/x-mixed-replace`` response; ends with the run, or with the source."""
        seen, settled = 0, True
        yield f"--{BOUNDARY}\r\n".encode()
        while True:
            await self._page.bell.wait(partial(self._news, seen), timeout_s=_LOOK_S if settled else _SETTLE_S)
            if self._latest.count != seen:
                seen, settled = await self._newest(seen), False
            elif self._over():
                return
            elif settled:
                continue
            else:
                # Chromium shows a picture only when the next one begins; one that stays is sent a second time.
                settled = True
            if self._jpeg:
                yield self._part()

    def _part(self) -> bytes:
        head = f"Content-Type: image/jpeg\r\nContent-Length: {len(self._jpeg)}\r\n\r\n".encode()
        return head + self._jpeg + f"\r\n--{BOUNDARY}\r\n".encode()

    def _news(self, seen: int) -> bool:
        return self._latest.count != seen or self._over()

    def _over(self) -> bool:
        return self._page.ended is not None or self._latest.ended is not None

    async def _newest(self, seen: int) -> int:
        """Make the JPEG of the latest frame unless another viewer just did; returns which frame it is of."""
        async with self._making:
            too_old = time.perf_counter() - self._made > _GAP_S and self._count != self._latest.count
            if self._count == seen or too_old:
                await asyncio.sleep(max(0.0, self._made + _GAP_S - time.perf_counter()))
                count, frame = self._latest.count, self._latest.frame
                if frame is not None:
                    loop = asyncio.get_running_loop()
                    self._jpeg = await loop.run_in_executor(self._executor, self._encode, frame)
                self._count, self._made = count, time.perf_counter()
            return self._count

    def _encode(self, frame: Frame) -> bytes:
        cv2 = opencv()
        ok, data = cv2.imencode(".jpg", self._small(frame), (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))
        return bytes(data) if ok else b""

    def _small(self, frame: Frame) -> Image:
        """The frame as (H, W, 3) uint8 BGR, at most 960 px wide."""
        cv2 = opencv()
        pixels = frame.pixels
        if isinstance(pixels, av.VideoFrame):
            # A reformatter of our own: the one inside the frame is shared with whoever else converts it just now.
            width = min(pixels.width, _WIDTH)
            height = max(1, round(pixels.height * width / pixels.width))
            small = self._reformatter.reformat(pixels, width, height, "bgr24", interpolation="AREA")
            return np.asarray(small.to_ndarray(), np.uint8)
        if pixels.shape[1] > _WIDTH:
            height = max(1, round(pixels.shape[0] * _WIDTH / pixels.shape[1]))
            pixels = cv2.resize(pixels, (_WIDTH, height), interpolation=cv2.INTER_AREA)
        bgr: Image = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        return bgr
