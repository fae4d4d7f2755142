# shellcheck shell=bash
# The demo on Kubernetes: on a new cluster of kind, or on kubectl's current one. scripts/demo.sh sources
# this file and provides the helpers step, shows, wait_for and fail. The command lines are those of
# docs/kubernetes.md.
# shellcheck disable=SC2034 # pause, state and advice are for those helpers
set -euo pipefail

[[ ${BASH_SOURCE[0]} != "$0" ]] || exec "$(dirname "$0")/demo.sh" --help

# --- both modes ---

begin() {
    cd "$(dirname "$0")/.."
    web_image=${WEB_IMAGE:-nginx:alpine}
    only IMAGE 'A-Za-z0-9./:@_-' "${IMAGE:-}"
    only WEB_IMAGE 'A-Za-z0-9./:@_-' "$web_image"
    only CIDR '0-9A-Fa-f.:/,' "${CIDR:-}"
    pause=0.2
    sudo=
    [[ $(id -u) == 0 ]] || sudo='sudo '
    said=$(mktemp)
    trap 'rm -f "$said"' EXIT
}

only() { # VARIABLE CHARACTERS VALUE, for a command line
    [[ $3 =~ ^[$2]*$ ]] || fail "$1=$3: expected only the characters $2"
}

try() { # COMMAND-LINE: prints it, runs it, prints its output and keeps it in $output
    local status=0
    printf '\n$ %s\n' "$1"
    eval "$1" 2>&1 | tee "$said" || status=$?
    output=$(<"$said")
    return "$status"
}

run() { try "$1" || fail "this failed: $1$(last_output)"; } # COMMAND-LINE, which has to succeed

there() { # NAMESPACE RESOURCE…: whether it exists in the cluster
    local names question="kubectl -n $1 get ${*:2} --ignore-not-found -o name"
    names=$($question) || fail "this failed: $question"
    [[ -n $names ]]
}

print_state() {
    local question
    printf '\n# The state of the cluster.\n'
    for question in 'get nodes,pods -A -o wide' \
        '-n kube-system describe pods -l app.kubernetes.io/name=tproxy-pod' \
        '-n tproxy-pod-demo describe pods' \
        '-n kube-system logs -l app.kubernetes.io/name=tproxy-pod --prefix --tail=50'; do
        try "kubectl --request-timeout=10s $question" || :
    done
    echo
}

is_rolled_out() {
    run 'kubectl -n kube-system rollout status daemonset/tproxy-pod --timeout=120s'
}

has_web_pod() { # [FLAG]: sets $web, the Pod's address, and $node, its node
    if ! there tproxy-pod-demo pod web; then
        # The API server refuses Pods before the service account exists.
        wait_for "kubectl -n tproxy-pod-demo get serviceaccount default" \
            kubectl -n tproxy-pod-demo get serviceaccount default
        run "kubectl -n tproxy-pod-demo run web --image=$web_image${1:+ $1}"
    fi
    run 'kubectl -n tproxy-pod-demo wait --for=condition=Ready pod/web --timeout=120s'
    run 'kubectl -n tproxy-pod-demo get pod web -o custom-columns=ADDRESS:.status.podIP,NODE:.spec.nodeName'
    read -r web node <<<"${output##*$'\n'}"
    [[ $web == *[.:]* ]] || fail "this should have shown the Pod's address"
}

in_url() { # ADDRESS
    case $1 in
        *:*) echo "[$1]" ;;
        *) echo "$1" ;;
    esac
}

asks_pod() { # CURL…
    local curl=$1 host
    host=$(in_url "$web")
    wait_for "$curl $host" eval "$curl $host"
    run "$curl $host"
    shows "Welcome to nginx!"
    run "$curl $host:8180/hello"
    shows "Request received from $host:8180 destination /hello : "
}

find_absent() { # sets $absent, an address without a Pod, on the node of the Pod
    local last address
    for last in 62 61 60 59 58; do
        case $web in
            *:*) address=${web%:*}:ff$last ;;
            *) address=${web%.*}.$(((${web##*.} & 192) + last)) ;;
        esac
        run "kubectl get pods -A --field-selector status.podIP=$address"
        if [[ $output == "No resources found"* ]]; then
            absent=$(in_url "$address")
            return
        fi
    done
    fail "this should have shown: No resources found"
}

has_logged() { # TARGET…
    local target logs='kubectl -n kube-system logs -l app.kubernetes.io/name=tproxy-pod --prefix --since=1m --tail=100'
    step "The log has a line for each, with the client's address." \
        "compare with what the Pods of tproxy-pod log, and with the node that each is on, above"
    for target; do
        wait_for "$logs: Received request to $target : " eval "$logs | grep 'Received request to $target : '"
    done
    run "$logs"
}

# --- kind: a new cluster; requests come from this machine ---

find_kind_tools() { # sets $engine, or $lacking
    local tool failed=
    lacking=
    for tool in kind kubectl; do
        command -v "$tool" >/dev/null || lacking+="${lacking:+, }$tool"
    done
    for engine in ${KIND_EXPERIMENTAL_PROVIDER:-docker podman}; do
        if command -v "$engine" >/dev/null; then
            ! "$engine" info &>/dev/null || break
            failed+="${failed:+ and }'$engine info' fails"
        fi
        engine=
    done
    [[ -n $engine ]] || lacking+="${lacking:+, }a container engine that works (${failed:-docker or podman})"
    [[ -z $lacking ]]
}

use_kind_tools() {
    if ! find_kind_tools; then
        advice="install or start what is missing, or type: scripts/demo.sh netns, which needs nothing of it"
        fail "kind cannot run here; missing: $lacking"
    fi
    [[ $engine != docker ]] || return 0
    printf '\n$ export KIND_EXPERIMENTAL_PROVIDER=%s\n' "$engine"
    export KIND_EXPERIMENTAL_PROVIDER=$engine
}

has_kind_cluster() {
    local clusters
    clusters=$(kind get clusters) || fail "this failed: kind get clusters"
    [[ $'\n'$clusters$'\n' == *$'\n'tproxy-pod$'\n'* ]]
}

show_routes() { # CIDR…: without a family, ip shows IPv4 routes only
    case $1 in
        *:*) ip -6 route show "$@" ;;
        *) ip route show "$@" ;;
    esac
}

has_route() { # CIDR ADDRESS: whether this route exists; fails if there is a route by another gateway
    local found others
    found=$(show_routes "$1") || fail "this failed: ip route show $1"
    if others=$(grep -vF " via $2 " <<<"$found") && [[ -n $others ]]; then
        advice="if an earlier demo made it, type: scripts/demo.sh kind --delete; if not, and it is not needed: ${sudo}ip route del $1; or let a Pod ask: scripts/demo.sh cluster"
        fail "there is another route to $1: $others"
    fi
    [[ -n $found ]]
}

add_routes() { # to each node's Pods, by the node
    local cidr address route routes=() missing=()
    run "kubectl get nodes -o custom-columns='POD-CIDR:.spec.podCIDR,ADDRESS:.status.addresses[?(@.type==\"InternalIP\")].address'"
    while read -r cidr address; do
        [[ $cidr != */* ]] || routes+=("$cidr via ${address%%,*}")
    done <<<"$output"
    ((${#routes[@]})) || fail "this should have shown the nodes' Pod CIDRs"
    # Check all of them before one is added.
    for route in "${routes[@]}"; do
        has_route "${route%% *}" "${route##* }" || missing+=("$route")
    done
    ((${#missing[@]})) || return 0
    for route in "${missing[@]}"; do
        # --delete reads it here, even without the cluster.
        echo "$route" >>target/tproxy-pod.routes || fail "target/tproxy-pod.routes cannot be written"
        run "${sudo}ip route add $route"
    done
}

play_kind() {
    begin
    use_kind_tools
    local image curl='curl -sS --max-time 5'
    image=$(sed -n 's/^ *image: //p' install.yaml)

    step "A cluster of its own." \
        "see what kind says above; it downloads the node's image. 'scripts/demo.sh kind --delete' and another try may help"
    if has_kind_cluster; then
        run 'kind export kubeconfig --name tproxy-pod'
    else
        run 'kind create cluster --name tproxy-pod'
    fi
    run 'kubectl config current-context'
    [[ $output == kind-tproxy-pod ]] || fail "kubectl does not talk to kind-tproxy-pod: is KUBECONFIG set?"
    state=print_state

    step "The image goes to the nodes without a registry." \
        "see what failed above; a build needs BuildKit (docker 23 or later) or podman, and downloads a Rust image and crates"
    # kind cannot load an image with attestations.
    run "BUILDX_NO_DEFAULT_ATTESTATIONS=1 $engine build --file Containerfile --tag $image ."
    run 'mkdir -p target'
    rm -f target/tproxy-pod.tar # podman does not overwrite it
    run "$engine save --output target/tproxy-pod.tar $image"
    run 'kind load image-archive target/tproxy-pod.tar --name tproxy-pod'

    step "tproxy-pod runs on every node." \
        "see the events and the log of its Pods above, and Troubleshooting in docs/operations.md"
    if there kube-system daemonset tproxy-pod; then
        run 'kubectl apply -f install.yaml'
        # The image may have changed under the same name.
        run 'kubectl -n kube-system rollout restart daemonset/tproxy-pod'
    else
        run 'kubectl apply -f install.yaml'
    fi
    is_rolled_out

    step "A Pod with a web server." \
        "see its events above; the node downloads $web_image, WEB_IMAGE=… takes another nginx"
    there default namespace tproxy-pod-demo || run 'kubectl create namespace tproxy-pod-demo'
    has_web_pod

    step "This machine reaches Pods through their node." \
        "type the route as root; or, where a Pod cannot be reached (Docker Desktop, rootless engines), let a Pod ask: scripts/demo.sh cluster"
    add_routes

    step "Port 80 is the Pod's, port 8180 is tproxy-pod's." \
        "if nothing comes back, see that 'ip route get $web' goes through the node, and that no firewall is in between; or let a Pod ask: scripts/demo.sh cluster"
    export no_proxy='*' # later requests go to this machine and the cluster only
    asks_pod "$curl"

    step "It answers at an address that no Pod has, too." "$advice"
    find_absent
    run "$curl $absent:8180/absent"
    shows "Request received from $absent:8180 destination /absent : "
    has_logged /hello /absent
    step "Every step was as it should be. To remove what was made: scripts/demo.sh kind --delete"
}

delete_kind() {
    begin
    local route found routes=() left=()
    if [[ -e target/tproxy-pod.routes ]]; then
        while read -r route; do routes+=("$route"); done <target/tproxy-pod.routes
        for route in "${routes[@]}"; do
            # If ip fails, the route may exist.
            if ! found=$(show_routes "${route%% *}" via "${route##* }") || [[ -n $found ]]; then
                try "${sudo}ip route del $route" || left+=("route $route")
            fi
        done
    fi
    ((${#left[@]})) || rm -f target/tproxy-pod.routes
    rm -f target/tproxy-pod.tar
    use_kind_tools
    if has_kind_cluster; then
        try 'kind delete cluster --name tproxy-pod' || left+=("cluster tproxy-pod")
    fi
    ((${#left[@]} == 0)) || fail "left: ${left[*]}. See why above, and type the commands yourself"
    step "The demo's cluster, routes and archive are gone. The image that was built stays in $engine."
}

# --- cluster: kubectl's current one; requests come from a Pod ---

# Label of all objects that the demo adds to a cluster; --delete removes objects with it.
readonly mark=app.kubernetes.io/managed-by=tproxy-pod-demo

install() {
    local sed="sed -e 's|image: .*|image: $IMAGE|'"
    [[ -z ${CIDR:-} ]] || sed+=" -e 's|--cidr=.*|--cidr=$CIDR|'"
    run "$sed install.yaml | kubectl label --local -f - $mark -o json | kubectl apply -f -"
}

has_client_pod() {
    local name status other='' overrides=''
    while read -r name status _; do
        [[ $status != Ready* || $name == "$node" ]] || other=$name
    done <<<"$nodes"
    if [[ -n $other ]]; then
        step "The client is another node's network." "see its events above; WEB_IMAGE=… takes another nginx with curl"
        overrides=" --overrides='{\"spec\":{\"hostNetwork\":true,\"nodeName\":\"$other\"}}'"
    else
        step "The client is another Pod: there is no second node." "see its events above; WEB_IMAGE=… takes another nginx with curl"
    fi
    there tproxy-pod-demo pod client ||
        run "kubectl -n tproxy-pod-demo run client --image=$web_image --labels=$mark$overrides --command -- sleep 3600"
    run 'kubectl -n tproxy-pod-demo wait --for=condition=Ready pod/client --timeout=120s'
}

address_of() { # NODE
    local name address
    while read -r name _ _ _ _ address _; do
        [[ $name != "$1" ]] || echo "$address"
    done <<<"$nodes"
}

play_cluster() {
    begin
    local nodes curl='kubectl -n tproxy-pod-demo exec client -- curl -sS --max-time 5'

    step "The cluster that kubectl talks to." \
        "point kubectl at a cluster: kubectl config get-contexts; kubectl config use-context NAME"
    run 'kubectl config current-context'
    run 'kubectl get nodes -l kubernetes.io/os=linux -o wide'
    nodes=$output
    state=print_state

    step "tproxy-pod runs on every node." \
        "push the image to a registry that the nodes reach, and name it: IMAGE=registry.example/tproxy-pod:0.1.0 scripts/demo.sh cluster"
    local installed=''
    ! there kube-system daemonset tproxy-pod || installed=somehow
    ! there kube-system daemonset -l "$mark" || installed=by-the-demo
    [[ -n $installed || -n ${IMAGE:-} ]] || state='' fail "tproxy-pod is not installed here, and IMAGE is not given"
    advice="see the events and the log of its Pods above, and Troubleshooting in docs/operations.md; 'scripts/demo.sh cluster --delete' removes what was made"
    if [[ $installed == somehow || -z ${IMAGE:-} ]]; then
        echo "It is installed already, and used as it is: IMAGE and CIDR are ignored."
    else
        install
    fi
    is_rolled_out

    step "A Pod with a web server." \
        "see its events above; the node downloads $web_image, WEB_IMAGE=… takes another nginx"
    if ! there default namespace tproxy-pod-demo; then
        # Pod Security refuses a hostNetwork Pod in a namespace without this label.
        run "kubectl create namespace tproxy-pod-demo --dry-run=client -o json | kubectl label --local -f - $mark pod-security.kubernetes.io/enforce=privileged -o json | kubectl apply -f -"
    fi
    has_web_pod "--labels=$mark"
    has_client_pod

    step "Port 80 is the Pod's, port 8180 is tproxy-pod's." \
        "the CIDR that is captured must contain $web: CIDR=… IMAGE=… scripts/demo.sh cluster. Or ask from another machine on the network of the nodes: sudo ip route add $web via $(address_of "$node"); curl $(in_url "$web"):8180/hello"
    asks_pod "$curl"

    step "It answers at an address that no Pod has, too, if the network brings it there." "$advice"
    find_absent
    if try "$curl $absent:8180/absent"; then
        shows "Request received from $absent:8180 destination /absent : "
        has_logged /hello /absent
    else
        echo "This cluster's network does not bring $absent to a node; Pods' own addresses are captured, as seen before."
        has_logged /hello
    fi
    step "Every other step was as it should be. To remove what was made: scripts/demo.sh cluster --delete"
}

delete_cluster() {
    begin
    step "What the demo added to the cluster that kubectl talks to, and nothing else, has its label." \
        "see why above, and try again"
    run 'kubectl config current-context'
    run "kubectl -n kube-system delete daemonsets,serviceaccounts -l $mark --timeout=120s"
    run "kubectl -n tproxy-pod-demo delete pods -l $mark --grace-period=1 --timeout=120s"
    run "kubectl delete namespaces -l $mark --timeout=120s"
}
