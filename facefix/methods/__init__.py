"""Restoration methods behind one small protocol: a folder each, and a row in the registry."""
