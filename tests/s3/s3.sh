#!/usr/bin/env bash
# A real server of the S3 protocol (moto) for tests, with one bucket named `millrace`.
#
#   s3.sh start STATE_DIR    starts a server that keeps everything in STATE_DIR and prints its host:port, nothing else
#   s3.sh stop STATE_DIR     stops it; objects and port stay, a later start continues with both
#   s3.sh kill STATE_DIR     the same without warning (SIGKILL)
#   s3.sh status STATE_DIR   prints host:port and exits 0 if it answers, exits 3 if not
#   s3.sh fetch              only fills the cache
#
# The packages named in requirements.txt are installed once with pip into ${XDG_CACHE_HOME:-~/.cache}/millrace/s3-VERSION.
# Python's venv is installed with apt when it is missing and that is possible. Messages go to standard error.
#
# moto holds objects in memory and records the requests that it answers; a start replays the recording of earlier ones.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=$(sed -n 's/^moto==//p' "$here/requirements.txt")
cache="${XDG_CACHE_HOME:-$HOME/.cache}/millrace/s3-$version"

say() { echo "s3.sh: $*" >&2; }
die() { say "$@"; exit 1; }

install_tools() {
    local missing=()
    command -v python3 >/dev/null || missing+=(python3)
    # Debian's python3 has the module venv without what it needs.
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    command -v curl >/dev/null || missing+=(curl)
    [ ${#missing[@]} -eq 0 ] && return
    say "installing ${missing[*]}"
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then sudo=(sudo -n); fi
    { "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
      "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2 ||
        die "could not install ${missing[*]}; install them by hand"
}

# Fills the cache. A lock keeps concurrent callers apart; without its mark at the end a half-filled cache is filled again.
fetch() {
    cmp -s "$here/requirements.txt" "$cache/complete" && return
    mkdir -p "$cache"
    (
        flock 9
        cmp -s "$here/requirements.txt" "$cache/complete" && exit 0
        install_tools
        say "installing moto $version"
        rm -rf "$cache/venv" "$cache/complete"
        { python3 -m venv "$cache/venv" &&
          "$cache/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
              --requirement "$here/requirements.txt"; } >&2 ||
            die "could not install moto $version with pip"
        cp "$here/requirements.txt" "$cache/complete"
    ) 9>"$cache/lock"
}

# A port nobody listens on, below the range that the kernel hands out for outgoing connections.
free_port() {
    local port
    for _ in $(seq 100); do
        port=$((20000 + RANDOM % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port"; return; fi
    done
    die "no free port found between 20000 and 32000"
}

running() {
    [ -f "$1/pid" ] && kill -0 "$(cat "$1/pid")" 2>/dev/null &&
        tr '\0' ' ' <"/proc/$(cat "$1/pid")/cmdline" 2>/dev/null | grep -q 'moto\.server'
}

ask() { curl --silent --output /dev/null --max-time 30 "$@"; }

# Any answer will do; requests below this path are not recorded.
answers() { ask "http://127.0.0.1:$1/moto-api/recorder/"; }

launch() {
    local state=$1 port=$2
    MOTO_ENABLE_RECORDING=1 MOTO_RECORDER_FILEPATH="$state/recording" \
        "$cache/venv/bin/python" -m moto.server --host 127.0.0.1 --port "$port" >>"$state/s3.log" 2>&1 </dev/null 9>&- &
    echo $! >"$state/pid"
    disown
}

start() {
    local state=$1 port
    mkdir -p "$state"
    state=$(cd "$state" && pwd)
    if [ -f "$state/port" ]; then port=$(cat "$state/port"); else port=$(free_port); fi
    if running "$state"; then echo "127.0.0.1:$port"; return; fi
    fetch
    launch "$state" "$port"
    for _ in $(seq 300); do
        running "$state" || die "the server stopped while starting: $(tail -n 5 "$state/s3.log")"
        if answers "$port"; then break; fi
        sleep 0.1
    done
    answers "$port" || die "the server did not answer within 30 seconds, see $state/s3.log"
    if [ -f "$state/port" ]; then
        ask --fail --request POST "http://127.0.0.1:$port/moto-api/recorder/replay-recording" || die "could not replay $state/recording"
    else
        ask --fail --request PUT "http://127.0.0.1:$port/millrace" || die "could not make the bucket"
        echo "$port" >"$state/port"
    fi
    echo "127.0.0.1:$port"
}

stop() {
    local state=$1 signal=$2 pid
    running "$state" || { rm -f "$state/pid"; return 0; }
    pid=$(cat "$state/pid")
    kill "-$signal" "$pid"
    for _ in $(seq 100); do
        if ! running "$state"; then rm -f "$state/pid"; return; fi
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    rm -f "$state/pid"
}

status() {
    if running "$1" && answers "$(cat "$1/port")"; then echo "127.0.0.1:$(cat "$1/port")"; else exit 3; fi
}

command=${1:-}
if [ "$command" = fetch ]; then fetch; exit; fi
state=${2:-}
[ -n "$state" ] || die "usage: $0 start|stop|kill|status STATE_DIR, or $0 fetch"
case "$command" in
    start) start "$state" ;;
    stop) stop "$state" TERM ;;
    kill) stop "$state" KILL ;;
    status) status "$state" ;;
    *) die "unknown command \`$command\` (start, stop, kill, status, fetch)" ;;
esac
