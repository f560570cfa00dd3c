"""The demo: the whole path on one machine, with real processes and real files. ``story`` tells it."""
