import contextlib
import signal


@contextlib.contextmanager
def StopSignals(loop, first, second):
    n = [0]

    def h(name):
        n[0] += 1
        (first(name) if n[0] == 1 else second())

    for s in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(s, h, s.name)
    try:
        yield
    finally:
        for s in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(s)
