"""`python ARGS` in a process that has imported torch already, and so has every Python that it starts: they are forked from it.

What is run is what a fresh interpreter would run, accelerate's launchers included; only the seconds of imports are saved. See
`jobs.python`.
"""

import atexit
import gc
import inspect
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import warnings

START = subprocess.Popen._execute_child
SIGNATURE = inspect.signature(START)


def run(args: list[str]) -> int:
    """Do what `python ARGS` does; return its exit code. ARGS begin with -c CODE, -m MODULE or a file, perhaps after -u or -P."""
    subprocess.Popen._execute_child = _execute_child
    os.execv = _execv
    atexit._clear()
    args = [arg for place, arg in enumerate(args) if arg not in ("-u", "-P") or place]
    code = 0
    try:
        if args[0] == "-c":
            sys.argv = ["-c", *args[2:]]
            sys.path.insert(0, "")
            exec(compile(args[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
        elif args[0] == "-m":
            sys.argv = args[1:]
            sys.path.insert(0, os.getcwd())
            sys.modules.pop(args[1], None)  # imported before, but not run
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = args
            sys.path.insert(0, os.path.dirname(os.path.abspath(args[0])))
            runpy.run_path(args[0], run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _execv(path: str, command: list[str]) -> None:
    """In place of os.execv, which would import torch anew: `run` what Python is to become."""
    assert path == command[0] == sys.executable
    os._exit(run(command[1:]))


def as_started() -> None:
    """Signals as a fresh process has them, whatever this one was forked from."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


def _execute_child(self: subprocess.Popen, *args, **options) -> None:
    """In place of Popen's own, which forks and execs: where Python is to be started, fork and `run`."""
    asked = SIGNATURE.bind(self, *args, **options).arguments
    command = asked["args"]
    if isinstance(command, str | bytes) or asked["shell"] or command[0] != sys.executable:
        START(self, *args, **options)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 has one about threads, which launchers have
        self.pid = os.fork()
    if self.pid:
        self._child_created = True
        self._close_pipe_fds(*(asked[end] for end in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")))
        return
    code = 1
    try:
        code = _child([*map(os.fsdecode, command[1:])], asked)
    finally:
        os._exit(code)


def _child(command: list[str], asked: dict) -> int:
    gc.freeze()  # nothing from before may close a descriptor that it no longer owns
    if asked["start_new_session"]:
        os.setsid()
    elif asked["process_group"] >= 0:
        os.setpgid(0, asked["process_group"])
    for stream, end in enumerate((asked["p2cread"], asked["c2pwrite"], asked["errwrite"])):
        if end != -1:
            os.dup2(end, stream)
    os.closerange(3, 4096)
    if asked["cwd"] is not None:
        os.chdir(asked["cwd"])
    if asked["env"] is not None:
        os.environ.clear()
        os.environ.update({os.fsdecode(name): os.fsdecode(value) for name, value in asked["env"].items()})
    as_started()
    return run(command)
