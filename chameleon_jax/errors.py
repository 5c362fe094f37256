"""What all our own errors have in common."""


class ChameleonError(Exception):
    """Something a person can put right. The message says what was wrong, where, and what to try; the command line
    prints it without a traceback."""


class TrainingError(ChameleonError):
    """Training cannot go on."""


class Stopped(ChameleonError):
    """Training was asked to stop, and saved what it had."""
