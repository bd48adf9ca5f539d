"""What this machine is, as data: device side, never imports torch."""
