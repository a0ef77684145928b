"""The gate: the POSIX shell script that PostgreSQL runs as ``archive_command``, and how it is called.

A hit starts no program: the shell itself sees that the daemon published the file as durable.  Else it
copies the file into ``todo/`` and waits.  Nothing here runs it; the folder is ``pitr.gate_folder``'s.

Reference: PostgreSQL manual, "Setting Up WAL Archiving": a status above 125, or a signal, ends the archiver.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

SCRIPT_NAME: Final = "gate"
ACKED_NAME: Final = "acked"
REFUSED_NAME: Final = "refused"
HANDED_NAME: Final = "todo"
# Its content is the daemon's process id.
DAEMON_NAME: Final = "daemon"
# There while WAL is streamed: then the acknowledgement comes without a copy.
STREAMS_NAME: Final = "streams"
# PostgreSQL tries a second and a third time a second later, then once a minute.
WAIT_S: Final = 55.0
# How long the stream may take for what the server has just written, before the file itself is copied.
_GRACE_S: Final = 10.0
# Without a daemon: one that is just being started again.
_ALONE_WAIT_S: Final = 3.0
_POLL_S: Final = 0.05
# Files that wait behind this one, copied with it, so that the daemon has work while this one is acknowledged.
AHEAD_MAX: Final = 8


def archive_command(folder: Path) -> str:
    """Return the setting's value: PostgreSQL replaces %f and %p, and takes %% for a percent sign."""
    return f"{shlex.quote(str(folder / SCRIPT_NAME)).replace('%', '%%')} %f %p"


def gate_script(*, wait_s: float = WAIT_S, grace_s: float = _GRACE_S) -> str:
    """Return the script, which finds its folder by its own name: ``FOLDER/gate NAME PATH``."""
    return _hit() + _miss() + _wait(wait_s, grace_s)


def _hit() -> str:
    """Return what runs for every file: only the shell's own words."""
    return f"""#!/bin/sh
# Written by pitr: PostgreSQL's archive_command.  0: the daemon published the file as durable; else 1.
# Never above 125, and by no signal that can be caught: that would end PostgreSQL's archiver.
LC_ALL=C
umask 027
name=${{1-}} path=${{2-}} folder=${{0%/*}} part=
fail() {{ printf 'pitr gate: %s: %s\\n' "$name" "$1" >&2; exit 1; }}
[ $# -eq 2 ] || fail 'expected two words: %f %p'
case $name in
????????????????????????|????????????????????????.partial|????????.history) digits=${{name%%.*}};;
????????????????????????.????????.backup) digits=${{name%.backup}} digits=${{digits%.*}}${{digits#*.}};;
*) fail 'this is no file of WAL';;
esac
case $digits in *[!0-9A-F]*) fail 'this is no file of WAL';; esac
[ -f "$path" ] || fail "there is no file $path"
# Newer than the file: a server that was set back writes other bytes under a name that was acknowledged.
is_acked() {{ [ "$folder/{ACKED_NAME}/$name" -nt "$path" ]; }}
is_acked && exit 0
"""


def _miss() -> str:
    """Return how a file is handed over."""
    return f"""\
trap '[ -z "$part" ] || rm -f "$part"; exit 1' HUP INT QUIT TERM
[ -d "$folder/{HANDED_NAME}" ] || fail "there is no folder $folder/{HANDED_NAME}: start pitr daemon"
is_alive() {{ read -r pid < "$folder/{DAEMON_NAME}" && [ -d "/proc/$pid" ]; }} 2>/dev/null
check() {{
    is_acked && exit 0
    if [ "$folder/{REFUSED_NAME}/$name" -nt "$path" ]; then
        read -r reason < "$folder/{REFUSED_NAME}/$name"
        fail "refused: $reason"
    fi
}}
# A copy, never a link: PostgreSQL would write other WAL into the same file once it recycles it.
# It is no older than the file, also after the clock was set back: what is published must be newer than both.
hand_over() {{
    [ "$folder/{HANDED_NAME}/$1" -nt "$2" ] && return 0
    part=$folder/{HANDED_NAME}/.$1.$$
    error=$(dd if="$2" of="$part" bs=1048576 conv=fsync 2>&1) &&
        {{ [ "$part" -nt "$2" ] || error=$(touch -r "$2" "$part" 2>&1); }} &&
        mv -f "$part" "$folder/{HANDED_NAME}/$1" && {{ part=; return 0; }}
    rm -f "$part"
    part=
    return 1
}}
ahead() {{
    folder_of=${{path%/*}} at=$name count=0
    while [ $count -lt {AHEAD_MAX} ]; do
        count=$((count + 1)) low=${{at#????????????????}} at=${{at%????????}}
        next=$at$(printf %08X $((0x$low + 1)))
        if [ ! -f "$folder_of/archive_status/$next.ready" ]; then
            high=${{at#????????}}
            next=${{at%????????}}$(printf %08X $((0x$high + 1)))00000000
            [ -f "$folder_of/archive_status/$next.ready" ] || return 0
        fi
        at=$next
        [ "$folder/{ACKED_NAME}/$at" -nt "$folder_of/$at" ] || hand_over "$at" "$folder_of/$at" || return 0
        check
    done
}}
"""


def _wait(wait_s: float, grace_s: float) -> str:
    """Return the loop that waits for the acknowledgement."""
    return f"""\
turn=0 turns={round(_ALONE_WAIT_S / _POLL_S)} grace=0
if is_alive; then
    turns={round(wait_s / _POLL_S)}
    # Only whole segments are acknowledged without a copy.
    [ "$digits" = "$name" ] && [ -f "$folder/{STREAMS_NAME}" ] && grace={round(grace_s / _POLL_S)}
fi
while [ $turn -lt $turns ]; do
    check
    if [ $turn -eq $grace ]; then
        hand_over "$name" "$path" || {{ error=${{error#*: }}; fail "cannot be copied: ${{error%%
*}}"; }}
        [ $grace -eq 0 ] && [ "$digits" = "$name" ] && ahead
    fi
    turn=$((turn + 1))
    sleep {_POLL_S} 2>/dev/null || sleep 1 || fail 'there is no sleep'
done
check
is_alive || fail "not durable, and no daemon works on $folder"
fail 'not durable yet'
"""
