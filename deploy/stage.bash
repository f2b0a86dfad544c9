# shellcheck shell=bash
# What the chapters of the demo share: a lab of their own that goes away whatever happens, a timeline, and instruments outside
# the guest. Sourced by deploy/chapters/*, which deploy/demo runs; not a program.
#
# In:  POLLUX (the program), PROBE (pollux-probe), GUEST (directory with vmlinuz and initrd.img)
#
#   stage_open NODES             brings up a lab with that many nodes; from here on, leaving the script cleans up
#   tell TEXT                    one line of the timeline, on standard output
#   on NODE COMMAND...           runs a command on a node
#   in_lan COMMAND...            runs a command where the clients are
#   value PATH                   prints one value of the JSON on standard input
#   instrument NAME COMMAND...   starts a pollux-probe instrument
#   mark NAME WINDOW             ends a window of one instrument and prints its report
#   instrument_end NAME          ends one instrument; its reports are in $stage/NAME.json

set -euo pipefail
export LC_ALL=C

: "${POLLUX:?}" "${PROBE:?}" "${GUEST:?}"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Longest wait for an instrument's report, in seconds: reading everything back takes at most twice its patience.
report_timeout_s=90

stage=$(mktemp -d "${TMPDIR:-/tmp}/pollux-demo.XXXXXX")
lab=demo$$
lab_is_up=no
begin=$EPOCHREALTIME
declare -A instrument_pid=() instrument_in=() instrument_out=()

elapsed() { awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "%7.2f s", b - a }'; }
tell() { printf '[%s] %s\n' "$(elapsed)" "$*"; }
progress() { printf 'demo: %s\n' "$*" >&2; }

stage_close() {
    local status=$? name left
    trap '' INT TERM HUP
    trap - EXIT
    set +e
    for name in "${!instrument_pid[@]}"; do
        instrument_close "$name"
        kill "${instrument_pid[$name]}" 2> /dev/null
        wait "${instrument_pid[$name]}" 2> /dev/null
    done
    if [ "$lab_is_up" = yes ]; then
        progress "cleaning up"
        if [ "$status" != 0 ] && [ -n "${POLLUX_DEMO_KEEP:-}" ]; then
            progress "POLLUX_DEMO_KEEP is set: the lab $lab stays; pollux lab down --name $lab ends it"
        else
            "$POLLUX" lab down --name "$lab" >&2 || progress "the lab $lab could not be taken down"
            if ! left=$("$root/deploy/leftovers" --since "$stage/before"); then
                progress "this was left behind:"
                printf '%s\n' "$left" >&2
                [ "$status" != 0 ] || status=1
            fi
        fi
    fi
    rm -rf "$stage"
    exit "$status"
}
trap stage_close EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

stage_open() {
    "$root/deploy/leftovers" > "$stage/before" || true
    # From now on there may be something to take down, also if bringing it up fails or is interrupted.
    lab_is_up=yes
    "$POLLUX" lab up --nodes "$1" --name "$lab" >&2
}

on() {
    local node=$1
    shift
    "$POLLUX" lab exec --name "$lab" "$node" -- "$@"
}
in_lan() { on lan "$@"; }
value() { "$PROBE" field "$1"; }

# The path of a node's network namespace. Compared by what it is, not by what the lab calls it.
netns_of() {
    local inode path
    inode=$(on "$1" stat --dereference --format %i /proc/self/ns/net)
    for path in /run/netns/*; do
        if [ "$(stat --dereference --format %i "$path" 2> /dev/null)" = "$inode" ]; then
            echo "$path"
            return
        fi
    done
    progress "the network namespace of $1 is not to be found in /run/netns"
    return 1
}

instrument() {
    local name=$1 in out other
    shift
    mkfifo "$stage/$name.in" "$stage/$name.out"
    # An instrument ends when its input does, so no other one may hold that open.
    (
        for other in "${!instrument_in[@]}"; do
            in=${instrument_in[$other]} out=${instrument_out[$other]}
            exec {in}>&- {out}<&-
        done
        exec "$@" < "$stage/$name.in" > "$stage/$name.out"
    ) &
    instrument_pid[$name]=$!
    exec {in}> "$stage/$name.in" {out}< "$stage/$name.out"
    instrument_in[$name]=$in
    instrument_out[$name]=$out
}

report() {
    local line
    if ! read -r -t "$report_timeout_s" line <&"${instrument_out[$1]}"; then
        progress "$1 gave no report within $report_timeout_s s, or ended"
        return 1
    fi
    printf '%s\n' "$line" | tee -a "$stage/$1.json"
}

mark() {
    echo "mark $2" >&"${instrument_in[$1]}"
    report "$1"
}

instrument_close() {
    local in=${instrument_in[$1]:-}
    [ -z "$in" ] || exec {in}>&-
    unset "instrument_in[$1]"
}

instrument_end() {
    local out=${instrument_out[$1]}
    instrument_close "$1"
    report "$1" > /dev/null
    wait "${instrument_pid[$1]}"
    exec {out}<&-
    unset "instrument_pid[$1]" "instrument_out[$1]"
}

# Instruments that measure time run before everything else, where that is allowed: what is measured is the guest, and not how long
# the measuring process waited for a processor.
# shellcheck disable=SC2034 # for chapters
promptly=()
! chrt --fifo 1 true 2> /dev/null || promptly=(chrt --fifo 1)
