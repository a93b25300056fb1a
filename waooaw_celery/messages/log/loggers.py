"""The one place in which a record is made safe for a log: this package's loggers, and the log of a worker."""

from __future__ import annotations

import logging
import traceback

from waooaw_celery.messages.log.escaping import escaped, escaped_lines


class EscapeFilter(logging.Filter):
    """Escapes the message and the traceback of each record. It changes no record that is safe already.

    A record may have an attribute ``stacks`` (``extra={"stacks": …}``): lines that are logged below its message.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Make a record safe, and return True."""
        if getattr(record, "is_escaped", False):  # by another logger or handler
            return True
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - a filter that raises would fail the code that logs
            record.msg, record.args = (
                f"{record.msg!s:.500} (its arguments cannot be formatted: {error!r:.200})",
                None,
            )
            message = record.getMessage()
        safe = escaped(message.rstrip("\n"))
        if safe != message:
            record.msg, record.args = safe, None
        if record.exc_info and not record.exc_text and record.exc_info[1] is not None:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info))
        lines = [text for text in (getattr(record, "stacks", None), record.exc_text) if text]
        if lines:
            record.exc_text = escaped_lines("\n".join(lines))
        record.is_escaped = True
        return True


#: The one filter, so that adding it twice changes nothing.
ESCAPES = EscapeFilter()


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module of this package: what it logs is escaped, in every process.

    Args:
        name: the module's ``__name__``.
    """
    logger = logging.getLogger(name)
    logger.addFilter(ESCAPES)
    return logger


def escape_log(logger: logging.Logger, **_: object) -> None:
    """Escape everything that reaches the handlers of a logger, such as the records of handlers and of Celery.

    Args:
        logger: a logger that has its handlers already. Celery's signals of a logger's setup name it.
    """
    for handler in logger.handlers:
        handler.addFilter(ESCAPES)
