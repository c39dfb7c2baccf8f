"""What every part needs and no part is about: files, text, locks, random states, optional packages."""
