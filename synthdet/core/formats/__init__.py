"""Annotation formats: text to records and back. Reading and writing files is the stages work."""
