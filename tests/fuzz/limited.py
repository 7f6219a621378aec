"""Run inputs of a door one by one, each in a process with limits, and say how each ended.

``python limited.py FOLDER`` reads names of doors from standard input and answers each with one line
of JSON: how often each outcome occurred, and a line for each input that ended badly. Everything is
imported once; an input runs in a fork.
"""

import hashlib
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from clipseg3d.cli.terminal import raised_here, say

AT_ONCE = 2
CPU_SECONDS, WALL_SECONDS, MEMORY = 20, 90, 3 << 30
OUTCOMES = (
    *("right", "refused"),
    *("vague", "traceback", "hang", "abort", "silent", "code run"),
)
"""The first two are good. ``vague`` is a refusal of several lines, or without a name or a cure;
``silent`` is another result than it should be, without a word."""
EXECUTED = "executed"
"""Folder that hostile inputs make in the working folder, if their code runs."""
_LONGEST_LINE = 1000
_CURES = r"; |: (give|choose) |did you mean|invalid|expected one argument|required"
_CHATTER = r"Segmenting |Scoring|Caching|Simulating|Loading |Writing |Seed set|💡|.*[TG]PU avail"

STEP = 1 if os.environ.get("CLIPSEG3D_FUZZ") == "all" else 5
"""Every fifth input is tried, unless all are asked for."""


def serve(folder):
    """Answer requests until standard input ends."""
    import doors

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # all else that is printed goes to standard error
    world = doors.World(folder / "world")
    for line in sys.stdin:
        answer = run_door(line.strip(), doors, world, folder)
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()


def run_door(name, doors, world, folder):
    """Run all inputs of a door; the first one is undamaged, and gives the right result."""
    door = doors.DOORS[name]
    counts, bad, running, waiting, expected = (
        Counter(),
        [],
        {},
        list(range(0, door.count, STEP)),
        None,
    )
    while waiting or running:
        while waiting and len(running) < AT_ONCE and (expected is not None or not running):
            seed = waiting.pop(0)
            place = folder / f"{name}-{seed}".replace(" ", "-")
            place.mkdir(parents=True)
            pid = os.fork()
            if pid == 0:
                _child(door, seed, world, place)
            running[pid] = (seed, place, time.monotonic() + WALL_SECONDS)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            time.sleep(0.005)
            for late in [p for p, (_, _, end) in running.items() if time.monotonic() > end]:
                os.killpg(late, signal.SIGALRM)  # no handler: it dies of it
            continue
        seed, place, _ = running.pop(pid)
        outcome, what, said = _judge(status, place, expected)
        if seed == 0:
            expected = _result(place).get("digest", "none")
        counts[outcome] += 1
        if outcome not in OUTCOMES[:2]:
            bad.append(f"{name} {seed} ({what}): {outcome}: {said}")
        shutil.rmtree(place, ignore_errors=True)
    return {"door": name, "counts": counts, "bad": bad}


def _child(door, seed, world, place):
    """Prepare an input, run it within limits, write down how it went, and end."""
    os.setsid()
    result = place / "result.json"
    for stream in ("stdout", "stderr"):
        file = os.open(place / stream, os.O_CREAT | os.O_WRONLY)
        os.dup2(file, getattr(sys, f"__{stream}__").fileno())
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    try:
        work = place / "work"
        work.mkdir()
        os.chdir(work)
        rng = random.Random(f"{door.name} {seed}")
        one = door.make(None if seed == 0 else rng, seed, work, world)
        written = {"what": one.what, "expect": one.expect if seed else "right", "names": one.names}
        result.write_text(json.dumps(written))
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        virtual = int(re.search(r"VmSize:\s*(\d+)", Path("/proc/self/status").read_text())[1])
        for limit, value in (
            (resource.RLIMIT_AS, virtual * 1024 + MEMORY),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 1 << 30),
        ):
            resource.setrlimit(limit, (value, value))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        try:
            code, value = one.run()
        except (ValueError, OSError) as error:
            if not callable(one.call) or not raised_here(error):
                raise
            code, value = 1, None
            say(f"clipseg3d: {error}", stream=sys.stderr)
        except SystemExit as end:
            code, value = int(end.code or 0), None
        digest = hashlib.sha256(repr(value).encode()).hexdigest()
        result.write_text(json.dumps({**written, "code": code, "digest": digest}))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _result(place):
    """Return what a process wrote down."""
    path = place / "result.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _judge(status, place, expected):
    """Return the outcome of an input, what it was, and what was said."""
    result = _result(place)
    what = result.get("what", "not prepared")
    said = (place / "stderr").read_text(errors="replace") if (place / "stderr").exists() else ""
    out = (place / "stdout").read_text(errors="replace") if (place / "stdout").exists() else ""
    lines = [
        line
        for line in re.split(r"[\r\n]+", said)
        if line.strip() and not line.startswith("clipseg3d: note: ") and not _is_chatter(line)
    ]
    text = "\n".join(lines)[-3000:]
    if (place / "work" / EXECUTED).exists():
        return "code run", what, text
    if os.WIFSIGNALED(status):
        stopped = os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU)
        return "hang" if stopped else "abort", what, f"signal {os.WTERMSIG(status)} {text}"
    if "Traceback" in said or "code" not in result:
        return "traceback", what, text
    if result["code"] == 0:
        wrong = result["expect"] == "same" and expected is not None
        if result["expect"] == "refused" or (wrong and result["digest"] != expected):
            return "silent", what, f"{result['expect']} expected; {text or out[-300:]}"
        return "right", what, text
    if result["expect"] == "right":
        return "silent", what, f"refused, which it should not be: {text}"
    message = text or out
    faults = any(re.search(r"\d+ faults", line) for line in lines)
    others = [line for line in lines if not line.startswith("clipseg3d") or "\x1b" in line]
    named = not result["names"] or any(name in message + out for name in result["names"])
    short = all(len(line) <= _LONGEST_LINE for line in message.split("\n"))
    cured = re.search(_CURES, message)
    if (others and not faults) or not (message and named and short and cured):
        return "vague", what, message
    return "refused", what, message


def _is_chatter(line):
    """Say whether a line is a progress bar or a remark of another library."""
    return bool(re.match(_CHATTER, line))


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
