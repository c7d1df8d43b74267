"""The networks. Nothing here knows about files of photos or the command line."""
