#!/usr/bin/env bash
# Checks and tests for every change.
set -euo pipefail

usage() {
    cat <<'TEXT'
scripts/test.sh [--all]: installs what the tests need, then checks and tests.

  Without an argument, what each change needs, in a few minutes: format, clippy,
  shellcheck, the static binaries, unit and end-to-end tests of the release
  binary, the image and the manifest, and the demo in network namespaces.

  --all  adds the lints of the fuzz targets, unit and end-to-end tests on a stock
         arm64 kernel, emulated (on Debian and x86_64), a little fuzzing, both
         stages of the Containerfile, death by want of memory, the demo as an
         ordinary user, and a quick run of the benchmark, whatever it measures.
         .ci/run calls it.

It runs on Debian or Ubuntu, x86_64 or arm64, and installs missing packages as
root; otherwise it says what is missing. A step that fails does not keep the
others from being run, and is listed at the end.
TEXT
}

all=
case "${1:-}" in
    "") ;;
    --all) all=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."

# command:package, of Debian and Ubuntu
tools=(buildah:buildah cc:gcc curl:curl file:file ip:iproute2 iptables-restore:iptables ipvsadm:ipvsadm jq:jq
    nft:nftables nsenter:util-linux python3:python3 runc:runc setpriv:util-linux shellcheck:shellcheck strace:strace
    sysctl:procps unshare:util-linux)
if [[ $all ]]; then
    tools+=(c++:g++ gnuplot:gnuplot-nox go:golang-go haproxy:haproxy iperf3:iperf3 wrk:wrk)
fi

PATH="$PATH:/usr/sbin:/sbin"
missing=()
for tool in "${tools[@]}"; do
    command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}")
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
    if ((EUID)); then
        echo "scripts/test.sh: missing: run as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    echo "== installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi
if ! command -v rustup >/dev/null; then
    echo "scripts/test.sh: rustup is missing: install it (Debian 13, Ubuntu 24.04: apt-get install rustup)" >&2
    exit 1
fi
echo "== toolchain of rust-toolchain.toml"
rustup toolchain install
echo "== Kubernetes' schemas"
python3 -m venv target/python
target/python/bin/pip install --quiet --disable-pip-version-check kubernetes-validate==1.37.0
echo "== promtool"
if [[ ! -x target/promtool ]]; then
    # Not installed: Debian's package starts a server.
    ((EUID)) || apt-get update -qq
    (cd target && apt-get download -qq -o APT::Sandbox::User=root prometheus)
    dpkg-deb --fsys-tarfile target/prometheus_*.deb | tar -x -C target --strip-components=3 ./usr/bin/promtool
    rm target/prometheus_*.deb
fi
if ! unshare --user --map-root-user --net --mount --pid --fork --mount-proc true; then
    echo "scripts/test.sh: a user may not make namespaces here (kernel.unprivileged_userns_clone, " \
        "kernel.apparmor_restrict_unprivileged_userns): run as root" >&2
    exit 1
fi
echo "== installed ($SECONDS s)"

target="$(uname -m)-unknown-linux-musl"
stage="$(mktemp -d)"

# Failed steps are listed at the end; the other steps still run.
failed=()
finish() {
    local status=$?
    rm -rf "$stage"
    if ((${#failed[@]})); then
        echo "== failed"
        printf '%s\n' "${failed[@]}"
        status=1
    fi
    echo "== ended with status $status ($SECONDS s)"
    exit "$status"
}
trap finish EXIT

step() { # NAME COMMAND…
    local before=${#failed[@]} began=$SECONDS result=passed
    echo "== $1"
    # Failures that the step adds itself follow its name.
    "${@:2}" || { failed=("${failed[@]:0:before}" "$1" "${failed[@]:before}"); result=failed; }
    echo "== $1: $result ($((SECONDS - began)) s)"
}

check_format() {
    cargo fmt --check && cargo fmt --check --manifest-path fuzz/Cargo.toml
}

check_lints() {
    cargo clippy --all-targets --target "$target" -- -D warnings
}

check_fuzz_lints() {
    cargo clippy --manifest-path fuzz/Cargo.toml --all-targets -- -D warnings
}

# Runs all tests, even if one fails; lists failed tests, and crates that were not built or aborted.
run_tests() {
    cargo test --no-fail-fast "$@" 2>&1 | tee "$stage/tests" && return
    mapfile -t -O "${#failed[@]}" failed < <(sed -n -e 's/^test \(.*\) \.\.\. FAILED$/    \1/p' \
        -e 's/^error: could not compile.*/    &/p' -e 's/^    .\(--.*\).$/    \1/p' "$stage/tests")
    return 1
}

# Runs the corpus, then new inputs: the same each time (-seed), and not kept.
fuzz() { # TARGET RUNS
    cargo fuzz --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-fuzz --version 0.13.2 || return
    mkdir "$stage/$1"
    if ! cargo fuzz run --sanitizer none "$1" "$stage/$1" "fuzz/corpus/$1" -- \
        -runs="$2" -seed=1 -timeout=10 -max_len=4096 >"$stage/log" 2>&1; then
        cat "$stage/log"
        return 1
    fi
    echo "$1: $(tail -n 1 "$stage/log")"
}

run_demo() {
    BINARY=$1 "${@:2}" netns >"$stage/story" || { cat "$stage/story"; return 1; }
}

run_benchmark() {
    BINARY=$binary scripts/bench.sh --quick >/dev/null
}

run_demo_as_user() {
    local user=(setpriv --reuid 65534 --regid 65534 --clear-groups)
    if ! "${user[@]}" unshare --user --map-root-user true; then
        echo "no demo as an ordinary user: only root may make namespaces here"
        return
    fi
    install -m 755 "$binary" scripts/demo.sh "$stage"
    chmod 755 "$stage"
    run_demo "$stage/tproxy-pod" "${user[@]}" "$stage/demo.sh"
}

test_for_each_change() {
    step "format" check_format
    step "lints" check_lints
    step "shellcheck" shellcheck scripts/*.sh tests/*/*.sh tests/kubernetes/stage/*.sh .ci/run
    # The tests need the binaries.
    local began=$SECONDS
    echo "== static binaries"
    scripts/build.sh
    echo "== static binaries: built ($((SECONDS - began)) s)"
    step "tests of $binary" run_tests --target "$target"
    step "demo" run_demo "$binary" scripts/demo.sh
}

test_the_rest() {
    step "lints of the fuzz targets" check_fuzz_lints
    if [[ $(uname -m) == x86_64 ]] && grep -qx ID=debian /etc/os-release; then
        step "tests on a stock arm64 kernel, emulated" scripts/kernels.sh 6.1-arm64
    else
        echo "== NOT on a stock arm64 kernel: scripts/kernels.sh needs Debian on x86_64"
    fi
    step "fuzzing of requests" fuzz request 40000
    step "fuzzing of scripts" fuzz script 40000
    step "fuzzing of options" fuzz options 40000
    step "fuzzing of netlink messages" fuzz netlink 200000
    if ((EUID == 0)); then
        step "both stages of the Containerfile" \
            unshare --net --mount --pid --fork --kill-child --mount-proc tests/kubernetes/containerfile.sh
        step "demo as an ordinary user" run_demo_as_user
    else
        echo "== not the first stage of the Containerfile: only root may run it here"
    fi
    if ((EUID == 0)) && [[ -w /sys/fs/cgroup/cgroup.procs || -w /sys/fs/cgroup/memory/cgroup.procs ]]; then
        step "death by want of memory" run_tests --target "$target" --test guard -- --ignored death::
    else
        echo "== not death by want of memory: only root may make control groups, where they can be changed"
    fi
    step "benchmark, quick" run_benchmark
}

binary="target/$(dpkg --print-architecture)/tproxy-pod"
export PROGRAM="$PWD/$binary"
test_for_each_change
[[ -z $all ]] || test_the_rest
