"""The journey: one file a stage. Stages meet on disk, never in an import."""
