"""Log lines as events with fields: JSON for machines, colours for a terminal."""

import logging
import sys

import structlog


def set_up(service: str, worker_id: str, *, level: str, style: str) -> None:
    """Send this process's log to stderr, every line bound to its service and id.

    `style` is "json", "text", or "auto": text on a terminal, else json.
    """
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer()
        if as_text
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service, worker_id=worker_id)
