"""Reports long compilations on stderr."""

import functools
import math
import sys
import threading
import time

import keras

from .devices import is_chief

# Seconds: shorter compilations, as of small models, are not reported.
PATIENCE = 2.0


class Notice:
    """A context that reports compilations in it, and how long the compiling call took.

    It prints nothing in the first `PATIENCE` seconds, if `keras.config` disables interactive
    logging, on machines other than the chief, or while ``silent``. Each line is written at once, so
    that it appears above the progress bars of rich.
    """

    def __init__(self, silent=True):
        self.silent = silent
        self.timer = None
        self.seen = set()

    def __enter__(self):
        self.entered, self.shape = time.monotonic(), None
        return self

    def begin(self, name, shape=None):
        """Reports that compiling ``name`` has begun, for an input of this shape if it is known."""
        if self.timer is not None:
            return
        self.name, self.shape = name, shape
        line = f"compiling {name}{self.of(shape)} ..."
        self.timer = threading.Timer(PATIENCE, self.say, [line])
        self.timer.daemon = True
        self.timer.start()

    def ran(self, shape):
        """Stores the input's shape, a tensor: XLA compiles for each shape, unknown when tracing.

        It is read only after slow calls, so that fast calls need not wait for a device.
        """
        self.shape = shape

    def __exit__(self, error, *_):
        seconds = time.monotonic() - self.entered
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()
        compiled = timer is not None or self.shape is not None
        if seconds <= PATIENCE or error is not None or not compiled:
            return
        shape = None if self.shape is None else tuple(int(size) for size in self.shape)
        if timer is not None:
            self.say(f"compiled {self.name}{self.of(shape)}: the first call took {seconds:.1f} s")
        elif shape not in self.seen:  # or the data was slow
            self.say(f"{self.name}{self.of(shape)} took {seconds:.1f} s: XLA may have compiled it")
        self.seen.add(shape)

    def of(self, shape):
        return "" if shape is None else f" for {tuple(shape)}"

    def say(self, line):
        if not self.silent and keras.config.is_interactive_logging_enabled() and is_chief():
            print(line, file=sys.stderr, flush=True)


def with_notice(function, name, by_shape=True):
    """Wraps ``function`` in a `Notice` of its first call, or of the first for each shape."""
    seen = set()

    @functools.wraps(function, updated=())
    def call(*args):
        shapes = [x.shape for x in keras.tree.flatten(args[0])]
        key = (*shapes,) if by_shape else (len(shapes),)
        key += tuple(argument is None for argument in args)
        if key in seen:
            return function(*args)
        with Notice(silent=False) as notice:
            notice.begin(name, max(shapes, key=math.prod) if by_shape else None)
            found = function(*args)
        seen.add(key)
        return found

    return call
