"""Names that strangers chose, in messages: a terminal obeys some of what it is told to print."""


def shown(text: object, limit: int = 100) -> str:
    """Return a text from a file, cut to `limit` and without what cannot be printed."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:limit])
