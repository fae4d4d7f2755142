#!/usr/bin/env bash
# Measures tproxy-pod in comparison with HAProxy, a Go server and a minimal C server.
set -euo pipefail

usage() {
    cat <<'TEXT'
scripts/bench.sh [--quick] [--only LIST] [--servers LIST] [--rounds N] [--output DIR]:
measures tproxy-pod beside others.

  The others are HAProxy, a Go server that works as the original tproxy-pod did,
  and a C server that does the least: each behind the same rules, in network
  namespaces of its own. It measures them under load, at a given rate, and what
  processes that compute beside them lose; their memory, their start, and what
  rules cost traffic that is not captured. It needs Debian packages, and says
  which are missing; it needs no root, and does not touch the network of your
  machine. Nothing else should run meanwhile.

  --quick         everything once, in about a minute after the builds; its numbers
                  are rough. Without it, it takes less than 20 minutes
  --only LIST     parts: load, paced, footprint, bystanders; or cells of load and
                  paced, such as keep-alive-64,close-64,paced-2000-busy
  --servers LIST  ours, haproxy, go, floor; an absolute path is another tproxy-pod.
                  The first is compared with each of the others
  --rounds N      rounds of each part
  --output DIR    where report.md, results.json and, if nothing is left out,
                  chart.svg go [target/bench]

Environment:
  BINARY  the program; without it the release binary is built
TEXT
}

fail() {
    echo "scripts/bench.sh: $*" >&2
    exit 1
}

command="scripts/bench.sh${*:+ $*}"
options=()
output=target/bench
while (($#)); do
    case $1 in
        --quick) options+=(--quick) ;;
        --only | --rounds | --servers) options+=("$1" "${2:?$1 needs a value}"); shift ;;
        --output) output=${2:?--output needs a directory}; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
output=$(realpath -m "$output")
binary=${BINARY:+$(realpath "$BINARY")}
[[ -z $binary || -x $binary ]] || fail "BINARY=$binary: there is no such program"
cd "$(dirname "$0")/.."

# command:package, of Debian and Ubuntu
tools=(gcc:gcc gnuplot:gnuplot-nox go:golang-go haproxy:haproxy ip:iproute2 iperf3:iperf3
    iptables-nft-restore:iptables ldd:libc-bin mount:mount nft:nftables python3:python3
    unshare:util-linux wrk:wrk)
PATH="$PATH:/usr/sbin:/sbin"
missing=()
for tool in "${tools[@]}"; do
    command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}")
done
[[ ! -x $(command -v gcc) || -e $(gcc -print-file-name=libc.a) ]] || missing+=(libc6-dev)
((${#missing[@]} == 0)) || fail "missing: run as root: apt-get install ${missing[*]}"
# The client opens 5,000 connections; HAProxy requires two descriptors for each of its 6,000.
(($(ulimit -n) >= 16384)) || ulimit -n 16384 || fail "16384 files have to be allowed: see ulimit -n"
own=(unshare --user --map-root-user --net --mount --pid --fork --kill-child --mount-proc)
"${own[@]}" true || fail "a user may not make namespaces here (kernel.unprivileged_userns_clone," \
    "kernel.apparmor_restrict_unprivileged_userns): run as root"

if [[ -z $binary ]]; then
    command -v cargo >/dev/null || fail "cargo is missing: install rustup, or give BINARY=path"
    case $(uname -m) in
        x86_64) binary=$(scripts/build.sh amd64) ;;
        aarch64) binary=$(scripts/build.sh arm64) ;;
        *) fail "this machine is neither x86_64 nor arm64" ;;
    esac
fi
mkdir -p target/bench
echo "scripts/bench.sh: building the peers" >&2
for program in floor paced neighbour; do
    gcc -O2 -Wall -Wextra -static -s -pthread -o "target/bench/$program" "scripts/bench/$program.c" -lm
done
GOCACHE="$PWD/target/bench/go-cache" GOPROXY=off GOFLAGS='' CGO_ENABLED=0 \
    go build -trimpath -ldflags '-s -w' -o target/bench/echo scripts/bench/echo.go

"${own[@]}" env -i PATH="$PATH" HOME="${HOME:-/}" LC_ALL=C.UTF-8 python3 -B scripts/bench \
    "${options[@]}" --output "$output" --command "$command" --ours "$(realpath "$binary")" \
    --go "$PWD/target/bench/echo" --floor "$PWD/target/bench/floor" --haproxy "$(command -v haproxy)" \
    --paced "$PWD/target/bench/paced" --neighbour "$PWD/target/bench/neighbour" &
namespaces=$!
# With the init process of the PID namespace, the kernel kills all its processes; then the namespaces end.
trap 'kill -KILL $namespaces' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
status=0
wait "$namespaces" || status=$?
trap - EXIT
exit "$status"
