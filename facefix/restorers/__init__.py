"""Restoration methods behind one small protocol."""
