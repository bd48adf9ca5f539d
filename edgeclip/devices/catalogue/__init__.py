"""Names of devices and JetPack releases in, what is known of them out, each figure with its source.

A new device: one TOML file in ``profiles/``.
"""
