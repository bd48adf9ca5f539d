"""Facts of a machine in, findings on its cameras out: OpenCV, GStreamer, who may open them."""

from __future__ import annotations

from collections.abc import Iterator

from edgeclip.devices.doctor.finding import Facts, Finding, Rule

_JETSON_ELEMENTS = {"nvarguscamerasrc", "nvvidconv"}


def opencv(facts: Facts) -> Iterator[Finding]:
    """Whether OpenCV loads, and has what this machine's cameras take."""
    software = facts.software
    if software is None:
        return
    tried = software.library("opencv")
    jetson = facts.machine.jetson is not None
    csi = any(camera.kind == "csi" for camera in facts.machine.cameras)
    from_pip = [name for name in software.packages if name.startswith("opencv")]
    if not software.loads("opencv"):
        broken = tried.error or tried.facts.get("broken")
        yield Finding(
            "opencv",
            "problem",
            "OpenCV is installed but does not load" if broken else "OpenCV is not installed",
            f"images and cameras are read with it{f' ({broken})' if broken else ''}",
            _system_opencv(facts, from_pip)
            if jetson and not facts.system_python_too_old
            else ("pip install --force-reinstall 'edgeclip[opencv]'",),
            stops=True,
        )
    elif tried.facts.get("GStreamer") == "yes":
        yield Finding("opencv", "ok", f"OpenCV {tried.version} with GStreamer")
    elif facts.system_python_too_old:
        yield Finding(
            "opencv",
            "note",
            f"OpenCV {tried.version} without GStreamer",
            "csi:// cameras and pipelines cannot be opened: none of PyPI's builds has it, and JetPack's OpenCV is "
            "bound to the system's Python, which is too old for edgeclip",
        )
    elif jetson or csi:
        where = f"pip's {' and '.join(from_pip)} hides the system's" if from_pip else "none of PyPI's builds has it"
        yield Finding(
            "opencv",
            "problem" if csi else "note",
            f"OpenCV {tried.version} without GStreamer",
            f"csi:// cameras and pipelines cannot be opened: {where}",
            _system_opencv(facts, from_pip),
        )
    else:
        yield Finding("opencv", "ok", f"OpenCV {tried.version} (no GStreamer, which gst: pipelines alone need)")


def gstreamer(facts: Facts) -> Iterator[Finding]:
    """Whether GStreamer has the elements of a Jetson's CSI cameras."""
    software = facts.software
    if software is None or facts.machine.jetson is None:
        return
    told = software.library("gstreamer").facts
    if told.get("inspect") == "no":
        yield Finding(
            "gstreamer",
            "note",
            "gst-inspect-1.0 is not installed",
            "it cannot be told whether the elements of CSI cameras are there",
            ("sudo apt install gstreamer1.0-tools",),
        )
    elif lacking := _JETSON_ELEMENTS & set(told.get("missing", "").split()):
        yield Finding(
            "gstreamer",
            "note",
            f"GStreamer has no {' and no '.join(sorted(lacking))}",
            "csi:// cameras are read with them; in a container, use an image for L4T",
            ("sudo apt install --reinstall nvidia-l4t-gstreamer", "rm -rf ~/.cache/gstreamer-1.0"),
        )
    else:
        yield Finding("gstreamer", "ok", "GStreamer has the elements of CSI cameras")


def cameras(facts: Facts) -> Iterator[Finding]:
    """Which cameras there are, and whether this user may open them."""
    found, software = facts.machine.cameras, facts.software
    lacking = software.missing_groups if software else ()
    closed = set(software.closed_devices) if software else set()
    if closed:
        yield Finding(
            "camera-access",
            "problem",
            f"{', '.join(sorted(closed))}: there, but not for this user",
            "cameras belong to the group video; a new group counts from the next login on",
            ("sudo usermod -aG video $USER",),
        )
    elif lacking and facts.machine.jetson:
        yield Finding(
            "groups",
            "problem" if "video" in lacking else "note",
            f"this user is not in the group{'s' if len(lacking) > 1 else ''} {' and '.join(lacking)}",
            "a Jetson's GPU and cameras are opened through video and render; a new group counts from the next login",
            (f"sudo usermod -aG {','.join(lacking)} $USER",),
        )
    if not found:
        yield Finding("cameras", "ok", "no camera attached (network cameras are not looked for)")
        return
    csi = [camera for camera in found if camera.kind == "csi"]
    if csi and facts.machine.jetson is None:
        yield Finding(
            "csi",
            "note",
            f"{', '.join(camera.device for camera in csi)}: on a CSI port",
            "they give raw frames, which only libcamera turns into pictures: read them with gst: and libcamerasrc",
            (
                "sudo apt install gstreamer1.0-libcamera",
                "edgeclip label BUNDLE 'gst:libcamerasrc ! video/x-raw,width=1280,height=720'",
            ),
        )
    elif any(camera.device not in closed for camera in found):
        yield Finding("cameras", "ok", f"{len(found)} camera{'s' if len(found) > 1 else ''} seen")


def _system_opencv(facts: Facts, from_pip: list[str]) -> tuple[str, ...]:
    """Commands that leave the system's OpenCV alone to be found."""
    remove = (f"pip uninstall -y {' '.join(from_pip)}",) if from_pip else ()
    jetson = facts.machine.jetson
    # JetPack's own, where apt has it; Ubuntu's has GStreamer too.
    jetpack = "sudo apt install nvidia-opencv || " if jetson and jetson.l4t else ""
    return (*remove, f"{jetpack}sudo apt install python3-opencv", *facts.see_system_packages())


RULES: tuple[Rule, ...] = (opencv, gstreamer, cameras)
