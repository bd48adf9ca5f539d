"""Camera frames in, labels out: the device side. Loads numpy, OpenCV, PyAV and one inference engine; never torch."""
