"""What a command does, mostly one module a command."""
