"""An RTSP camera for the tests: ``/usr/bin/python3 rtsp_server.py PORT [PEM]`` until it is killed.

Runs with the system's Python, which has GStreamer's bindings. Prints ``ready`` when it listens.
With a file that holds a certificate and its key, it speaks TLS.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtspServer  # noqa: E402


def main(port: str, certificate: str = "") -> None:
    """Serve a moving test picture, 320×240 at 30 frames/s, at ``rtsp://127.0.0.1:PORT/yard``."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_shared(True)
    factory.set_launch(
        "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=320,height=240,framerate=30/1 ! "
        "x264enc speed-preset=ultrafast threads=1 key-int-max=15 tune=zerolatency ! "
        "rtph264pay name=pay0 pt=96 config-interval=1 )"
    )
    if certificate:
        auth = GstRtspServer.RTSPAuth()
        auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(certificate))
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "anyone")
        auth.set_default_token(token)
        factory.add_role_from_structure(
            Gst.Structure.new_from_string("anyone, media.factory.access=(bool)true, media.factory.construct=(bool)true")
        )
        server.set_auth(auth)
    server.get_mount_points().add_factory("/yard", factory)
    if not server.attach(None):
        sys.exit(f"cannot listen on port {port}")
    print("ready", flush=True)  # noqa: T201
    GLib.MainLoop().run()


main(*sys.argv[1:])
