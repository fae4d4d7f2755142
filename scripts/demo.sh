#!/usr/bin/env bash
# Demonstrates tproxy-pod with real packets, as in README.md and docs/kubernetes.md, and checks every step.
set -euo pipefail

usage() {
    cat <<'TEXT'
scripts/demo.sh [kind|cluster|netns]: shows tproxy-pod at work, and checks every step.

  kind     makes a cluster of its own with kind, builds the image, installs
           tproxy-pod and a web server Pod, and asks from this machine
  cluster  the same on the cluster that kubectl talks to; a Pod asks. It uses a
           tproxy-pod that is installed there as it is, or installs IMAGE
  netns    a client, a node and a Pod with a web server on port 80, in network
           namespaces of their own: it needs no cluster and no root, and does
           not touch this machine's own network

Without a mode it is kind where kind, kubectl and docker or podman work, else
netns; the first line says which, and why.

  kind --delete      removes the cluster named tproxy-pod, also if you made it, the
                     routes that kind added, and the image's archive
  cluster --delete   removes what cluster made, and nothing else

Environment:
  IMAGE      cluster: the image to install, which the nodes can pull
  CIDR       cluster: the Pod CIDRs to capture, in place of install.yaml's
  WEB_IMAGE  kind, cluster: an nginx, for cluster with curl [nginx:alpine]
  BINARY     netns: the program; without it the release binary is built
  PATIENCE   seconds to wait for an answer or a log line [15]
TEXT
}

fail() { # MESSAGE…: prints the state of the cluster or the log, if any; then the reason and the advice
    [[ -z ${state:-} ]] || "$state" >&2
    [[ -z ${log:-} ]] || cat "$log" >&2
    echo "scripts/demo.sh: $*" >&2
    [[ -z ${advice:-} ]] || echo "What to do: $advice" >&2
    exit 1
}

last_output() { # the last ten lines of output, for the reason: print_state comes between
    local lines
    [[ -n $output ]] || return 0
    mapfile -t lines <<<"$output"
    printf '\n  | %s' "${lines[@]:${#lines[@]} > 10 ? ${#lines[@]} - 10 : 0}"
}

step() { # WHAT [ADVICE]: the advice is printed if the step fails
    printf '\n# %s\n' "$1"
    advice=${2:-}
}

on() { # NAMESPACE COMMAND…: prints it, runs it, prints its output; sets $output and $status
    printf '\n%s$ %s\n' "$1" "${*:2}"
    status=0
    output=$(in_namespace "$@" 2>&1) || status=$?
    [[ -z $output ]] || printf '%s\n' "$output"
}

shows() { # TEXT…: fails unless the output contains each
    local text
    for text; do
        [[ $output == *"$text"* ]] || fail "this should have shown: $text$(last_output)"
    done
}

ends_with() { ((status == $1)) || fail "this should have ended with status $1, not $status"; }

readonly patience=${PATIENCE:-15}

wait_for() { # WHAT COMMAND…: until the command succeeds
    local deadline=$((SECONDS + 10#$patience))
    until "${@:2}" &>/dev/null; do
        ((SECONDS < deadline)) || fail "it never came to be: $1"
        sleep "${pause:-0.01}"
    done
}

# --- netns: three network namespaces, in a user and a PID namespace ---

readonly cidrs=10.244.0.0/16,fd00:10:244::/56
readonly client=192.0.2.2 pod=10.244.0.5 unused=10.244.77.77
readonly client6=2001:db8:1::2 pod6=fd00:10:244::5 unused6=fd00:10:244:7::7

in_namespace() { # NAMESPACE COMMAND…
    case $1 in
        node) "${@:2}" ;;
        *) nsenter --net="$1" "${@:2}" ;;
    esac
}

link() { # NAMESPACE ITS-IPV4 ITS-IPV6 NODE-IPV4 NODE-IPV6, without their /24 and /64
    : >"$1"
    unshare --net="$1" true
    in_namespace "$1" sh -c 'ip link set lo up; echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad'
    ip link add "$1" type veth peer name eth0 netns "$PWD/$1"
    ip address add "$4/24" dev "$1"
    ip address add "$5/64" dev "$1"
    ip link set "$1" up
    in_namespace "$1" ip address add "$2/24" dev eth0
    in_namespace "$1" ip address add "$3/64" dev eth0
    in_namespace "$1" ip link set eth0 up
    in_namespace "$1" ip route add default via "$4"
    in_namespace "$1" ip -6 route add default via "$5"
}

has_httpd() { busybox --list 2>/dev/null | grep -x httpd >/dev/null; }

make_network() { # reads the binary from stdin; all files are in a tmpfs of this mount namespace
    mount -t tmpfs tmpfs /run
    cd /run
    cat >tproxy-pod
    chmod 755 tproxy-pod
    # curl as on a terminal, but with a deadline
    printf 'silent\nshow-error\nmax-time=5\n' >.curlrc
    ip link set lo up
    echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
    echo 1 >/proc/sys/net/ipv4/ip_forward
    echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
    link client "$client" "$client6" 192.0.2.1 2001:db8:1::1
    link pod "$pod" "$pod6" 10.244.0.1 fd00:10:244::1
    mkdir www
    echo "the web server of the Pod" >www/index.html
    local server=(python3 -m http.server --bind :: --directory www 80)
    ! has_httpd || server=(busybox httpd -f -p 80 -h www)
    in_namespace pod "${server[@]}" &>/dev/null &
    wait_for "the Pod's web server answers" in_namespace client curl "$pod"
}

remains() { (ip rule; ip -6 rule; ip route show table 100; ip -6 route show table 100; nft list tables) 2>/dev/null || :; }

echoes() { # DESTINATION TARGET CLIENT PORT: fails unless a request from this client and port is echoed
    on client curl --local-port "$4" "$1$2"
    shows "Request received from $1 destination $2 : GET $2 HTTP/1.1" "Client: $3:$4" "Destination: $1"
    expected_log+=("Received request to $2 : client=$3:$4 destination=$1 method=GET")
}

play() {
    make_network
    local before daemon lines expected_log=()
    before=$(remains)
    cat <<TEXT
Three network namespaces; the prompt says in which of them a command runs.

  client  $client  $client6
    |
  node    routes between the two; tproxy-pod runs here
    |
  pod     $pod  $pod6  a web server on port 80
TEXT
    step "Before: the Pod answers on port 80, nothing answers on port 8180."
    on client curl "$pod"
    shows "the web server of the Pod"
    on client curl "$pod:8180"
    ends_with 7

    step "tproxy-pod starts on the node."
    log=tproxy-pod.log
    printf '\nnode$ tproxy-pod --cidr %s 2>%s &\n' "$cidrs" "$log"
    tproxy-pod --cidr "$cidrs" 2>"$log" &
    daemon=$!
    wait_for "tproxy-pod intercepts" eval "grep 'Created table' $log || ! kill -0 $daemon"
    grep -q "Created table" "$log" || fail "tproxy-pod did not start"
    cat "$log"

    step "Port 80 of the Pod is as before."
    on client curl "$pod"
    shows "the web server of the Pod"
    on client curl "[$pod6]"
    shows "the web server of the Pod"

    step "tproxy-pod answers on port 8180 of the Pod, and of an address that no Pod has."
    echoes "$pod:8180" /hello "$client" 40001
    echoes "$unused:8180" /absent "$client" 40002
    echoes "[$pod6]:8180" /hello "[$client6]" 40003
    echoes "[$unused6]:8180" /absent "[$client6]" 40004

    step "The log has a line for each, with the client's real address."
    wait_for "the log has the last line" grep -F "${expected_log[-1]}" "$log"
    on node grep Received "$log"
    shows "${expected_log[@]}"

    step "A client chooses the form, the status and the delay of its answer."
    on client curl -H Accept:application/json "$pod:8180/hello"
    shows '"client":"192.0.2.2:' '"destination":"10.244.0.5:8180"' '"target":"/hello"'
    on client curl -i -H X-Echo-Status:503 -H X-Echo-Delay:250ms "$pod:8180/late"
    shows "HTTP/1.1 503 Service Unavailable" "Server: tproxy-pod/" "GET /late HTTP/1.1"

    step "What the node sees of it: the state, and metrics beside it at /metrics."
    on node curl 127.0.0.1:1/
    shows "State:              ready" "Capturing:          TCP to $cidrs port 8180" "  503:              1"

    step "What is on the node while it runs."
    on node nft list table inet tproxy-pod
    shows "table inet tproxy-pod"
    on node ip rule
    shows "fwmark 0x1/0x1 lookup 100"
    on node ip route show table 100
    shows "local 10.244.0.0/16 dev lo"

    step "It stops, and nothing is left."
    lines=$(wc -l <"$log")
    printf '\nnode$ kill %s; wait %s\n' "$daemon" "$daemon"
    kill "$daemon"
    wait_for "tproxy-pod ends" eval "! kill -0 $daemon"
    wait "$daemon" && status=0 || status=$?
    tail -n "+$((lines + 1))" "$log"
    ends_with 0
    on node nft list tables
    on node ip rule
    on node ip route show table 100
    [[ $(remains) == "$before" ]] || fail "something is left:"$'\n'"$(remains)"
    on client curl "$pod:8180"
    ends_with 7
    on client curl "$pod"
    shows "the web server of the Pod"
    step "Every step was as it should be."
}

netns() {
    PATH="$PATH:/usr/sbin:/sbin"
    local binary=${BINARY:-} script missing=() tool status=0
    local tools=(curl:curl ip:iproute2 nft:nftables nsenter:util-linux unshare:util-linux)
    has_httpd || tools+=(python3:python3)
    for tool in "${tools[@]}"; do
        command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}")
    done
    ((${#missing[@]} == 0)) || fail "missing: run as root: apt-get install ${missing[*]}"
    [[ -e /proc/sys/net/ipv6 ]] || fail "this kernel runs without IPv6 (ipv6.disable=1), which is part of the story"
    script=$(realpath "$0")
    if [[ -z $binary ]]; then
        command -v cargo >/dev/null || fail "cargo is missing: install rustup, or give BINARY=path"
        cd "$(dirname "$script")/.."
        case $(uname -m) in
            x86_64) binary=$(scripts/build.sh amd64) ;;
            aarch64) binary=$(scripts/build.sh arm64) ;;
            *) fail "this machine is neither x86_64 nor arm64" ;;
        esac
    fi
    local own=(unshare --user --map-root-user --net --mount --pid --fork --kill-child --mount-proc)
    "${own[@]}" true || fail "a user may not make namespaces here (kernel.unprivileged_userns_clone," \
        "kernel.apparmor_restrict_unprivileged_userns): run as root"
    "${own[@]}" env -i PATH="/run:$PATH" HOME=/run PATIENCE="$patience" bash "$script" inside <"$binary" &
    local namespaces=$!
    # With the init process of the PID namespace, the kernel kills all its processes; then the namespaces end.
    trap 'kill -KILL $namespaces' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    wait "$namespaces" || status=$?
    trap - EXIT
    exit "$status"
}

on_kubernetes() { # FUNCTION of demo-kubernetes.sh
    # shellcheck source=scripts/demo-kubernetes.sh
    . "$(dirname "$0")/demo-kubernetes.sh"
    "$1"
}

kind_or_netns() {
    if find_kind_tools; then
        echo "scripts/demo.sh kind, because kind, kubectl and $engine work here"
        play_kind
    else
        echo "scripts/demo.sh netns, because kind cannot run here; missing: $lacking"
        netns
    fi
}

[[ $patience =~ ^[0-9]{1,4}$ ]] || fail "PATIENCE=$patience: expected a number of seconds"
case "$*" in
    "") on_kubernetes kind_or_netns ;;
    netns) netns ;;
    inside) play ;;
    kind) on_kubernetes play_kind ;;
    cluster) on_kubernetes play_cluster ;;
    "kind --delete") on_kubernetes delete_kind ;;
    "cluster --delete") on_kubernetes delete_cluster ;;
    -h | --help) usage ;;
    *) usage >&2; exit 2 ;;
esac
