"""The library behind the chapters; see each module for the slide it serves."""
