"""An RTSP camera for the tests: ``/usr/bin/python3 rtsp_server.py PORT [H.264 encoder options]`` until it is killed.

Runs with the system's Python, which has GStreamer's bindings. Prints ``ready`` when it listens.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main(port: str, encoder: str = "key-int-max=15 tune=zerolatency") -> None:
    """Serve a moving test picture, 320×240 at 30 frames/s, at ``rtsp://127.0.0.1:PORT/yard``."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_shared(True)
    factory.set_launch(
        "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=320,height=240,framerate=30/1 ! "
        f"x264enc speed-preset=ultrafast threads=1 {encoder} ! rtph264pay name=pay0 pt=96 config-interval=1 )"
    )
    server.get_mount_points().add_factory("/yard", factory)
    if not server.attach(None):
        sys.exit(f"cannot listen on port {port}")
    print("ready", flush=True)  # noqa: T201
    GLib.MainLoop().run()


main(*sys.argv[1:])
