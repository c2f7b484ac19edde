"""What exports of tests have in common."""

SMALL = ("--context", 64, "--prefill", 8, "--positions", 12)


def names(path):
    return sorted(p.name for p in path.iterdir())
