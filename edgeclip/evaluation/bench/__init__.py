"""Bundles and settings in; latency, throughput, memory and energy in turns, out."""
