"""Files on disk, whatever is in them: atomic writes, locks, names, digests."""
