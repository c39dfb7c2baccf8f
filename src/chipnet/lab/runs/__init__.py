"""Run folders: what is in them, how they are read, compared and shown."""
