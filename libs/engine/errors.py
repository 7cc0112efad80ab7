"""What can be wrong with a model.

EngineError
├── BrokenCheckpoint    the files are missing, unreadable or incomplete
└── UnsupportedModel    the files are fine, but this engine would not be exact
"""


class EngineError(Exception):
    """The model cannot be served; the text is meant for the person who asked for it."""


class BrokenCheckpoint(EngineError):
    """The files are missing, unreadable or incomplete."""


class UnsupportedModel(EngineError):
    """The model does something that paged attention over packed sequences does not."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"this model cannot be served: {reason}")
        self.reason = reason
