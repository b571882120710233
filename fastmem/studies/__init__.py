"""Questions answered end to end: a config, a run, a report. One question a module."""
