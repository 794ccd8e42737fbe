"""synthdet: from a few annotated aerial photos to a bigger training set, and an honest verdict.

Nothing heavy is imported here: ``synthdet --help`` answers without torch.
"""

__version__ = "0.1.0"
