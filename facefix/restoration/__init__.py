"""The journey of an album: scan, index, people, plan, restore, record."""
