#!/usr/bin/env bash
# A real single-node Apache Kafka (KRaft) for tests.
#
#   kafka.sh start STATE_DIR    starts a broker that keeps everything in STATE_DIR and prints its host:port, nothing else
#   kafka.sh stop STATE_DIR     stops it; data and port stay, a later start continues with both
#   kafka.sh kill STATE_DIR     the same without warning (SIGKILL)
#   kafka.sh status STATE_DIR   prints host:port and exits 0 if it answers, exits 3 if not
#   kafka.sh fetch              only fills the cache
#
# The artifacts named in pom.xml are fetched once with Maven into ${XDG_CACHE_HOME:-~/.cache}/millrace/kafka-VERSION.
# Missing Java 17 or Maven is installed with apt when that is possible. Messages go to standard error.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$here/pom.xml")
cache="${XDG_CACHE_HOME:-$HOME/.cache}/millrace/kafka-$version"

say() { echo "kafka.sh: $*" >&2; }
die() { say "$@"; exit 1; }

java_major() { java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1; }

install_tools() {
    local missing=()
    if ! command -v java >/dev/null || [ "$(java_major)" -lt 17 ]; then missing+=(openjdk-17-jre-headless); fi
    command -v mvn >/dev/null || missing+=(maven)
    [ ${#missing[@]} -eq 0 ] && return
    say "installing ${missing[*]}"
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then sudo=(sudo -n); fi
    { "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
      "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2 ||
        die "could not install ${missing[*]}; install them by hand, or set MILLRACE_TEST_KAFKA to the host:port of a broker"
}

# Fills the cache. A lock keeps concurrent callers apart, a rename makes a half-filled cache invisible.
fetch() {
    [ -f "$cache/complete" ] && return
    mkdir -p "$cache"
    (
        flock 9
        [ -f "$cache/complete" ] && exit 0
        install_tools
        say "fetching Apache Kafka $version"
        rm -rf "$cache/libs.part"
        mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
            -DoutputDirectory="$cache/libs.part" >&2 ||
            die "could not fetch Apache Kafka $version with Maven; set MILLRACE_TEST_KAFKA to the host:port of a broker instead"
        rm -rf "$cache/libs"
        mv "$cache/libs.part" "$cache/libs"
        : >"$cache/complete"
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

# A random identifier in the shape that Kafka wants. Its first character is fixed: a leading dash would be taken for an option.
cluster_id() { echo "M$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=' | tail -c +2)"; }

running() {
    [ -f "$1/pid" ] && kill -0 "$(cat "$1/pid")" 2>/dev/null &&
        tr '\0' ' ' <"/proc/$(cat "$1/pid")/cmdline" 2>/dev/null | grep -q 'kafka\.Kafka'
}

# Asks for the supported protocol versions; a broker that is still starting or fenced does not reply.
answers() {
    local reply
    reply=$(
        exec 2>/dev/null
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf '\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x07\xff\xff' >&3
        timeout 2 head -c 8 <&3 | od -An -tx1 -j4
    ) || return 1
    [ "${reply// /}" = 00000007 ]
}

configure() {
    local state=$1 port=$2 controller=$3
    cat >"$state/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
log.dirs=$state/data
auto.create.topics.enable=false
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
PROPERTIES
    cat >"$state/log4j2.properties" <<'PROPERTIES'
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c - %m%n
PROPERTIES
}

run_java() {
    local state=$1
    shift
    exec java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dlog4j2.configurationFile="$state/log4j2.properties" \
        -cp "$cache/libs/*" "$@"
}

launch() {
    local state=$1
    (run_java "$state" kafka.Kafka "$state/server.properties") >>"$state/kafka.log" 2>&1 </dev/null 9>&- &
    echo $! >"$state/pid"
    disown
}

start() {
    local state=$1 port controller
    mkdir -p "$state"
    state=$(cd "$state" && pwd)
    if running "$state"; then
        port=$(cat "$state/port")
    else
        fetch
        if [ -f "$state/port" ]; then
            port=$(cat "$state/port")
        else
            port=$(free_port)
            controller=$(free_port)
            [ "$port" != "$controller" ] || controller=$((port + 1))
            configure "$state" "$port" "$controller"
            (run_java "$state" kafka.tools.StorageTool format -t "$(cluster_id)" \
                -c "$state/server.properties") >>"$state/kafka.log" 2>&1 ||
                die "could not format $state/data, see $state/kafka.log"
            echo "$port" >"$state/port"
        fi
        launch "$state"
    fi
    for _ in $(seq 600); do
        running "$state" || die "the broker stopped while starting: $(tail -n 5 "$state/kafka.log")"
        if answers "$port"; then echo "127.0.0.1:$port"; return; fi
        sleep 0.1
    done
    die "the broker did not answer within a minute, see $state/kafka.log"
}

stop() {
    local state=$1 signal=$2 pid
    running "$state" || { rm -f "$state/pid"; return 0; }
    pid=$(cat "$state/pid")
    kill "-$signal" "$pid"
    for _ in $(seq 300); do
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
