"""Contexts looked at: in a running worker, over HTTP, or in the topic ``state``."""
