"""A sweep as one page."""


def write_report(runs, name):
    return runs / "x"
