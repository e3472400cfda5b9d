"""Where services run: one protocol (`model`), several implementations. Imports nothing: supervisors stay small."""
