"""Image–text models in, proved bundles out. The room can be called: ``edgeclip.export(model, path)``.

What it does then, and takes, says ``export`` in ``edgeclip/export/bundle.py``. A function of the room's name could not
stand beside it in ``edgeclip``: importing any module of the room would put the room in its place.
"""

import inspect
import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from edgeclip.export.bundle import export

        return export(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        from edgeclip.export.bundle import export

        return inspect.signature(export)


sys.modules[__name__].__class__ = _CallableRoom
