"""An engine and the bundle's golden images in; whether it computes what FP32 does, how fast, and which to run, out."""
