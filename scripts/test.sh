#!/usr/bin/env bash
# Everything that has to hold before a change lands.
set -euo pipefail

usage() {
    cat <<'TEXT'
scripts/test.sh: installs what the tests need, then checks and tests everything.

  format, clippy, shellcheck, unit tests, the static binaries, end-to-end tests
  of the release binary, the image, the manifest and the demo, a little fuzzing,
  and a quick run of the benchmark, whatever it measures, in network namespaces of
  their own; on Debian and x86_64, end-to-end tests on a stock kernel, too. Debian
  or Ubuntu, x86_64 or arm64. What fails does not keep the rest from being run, and
  is listed in the end.

As root it installs missing packages; otherwise it says what is missing.
TEXT
}

case "${1:-}" in
    "") ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."

# command:package, of Debian and Ubuntu
tools=(buildah:buildah c++:g++ cc:gcc curl:curl file:file gnuplot:gnuplot-nox go:golang-go haproxy:haproxy
    ip:iproute2 iperf3:iperf3 iptables-restore:iptables ipvsadm:ipvsadm nft:nftables nsenter:util-linux
    python3:python3 qemu-aarch64-static:qemu-user-static runc:runc setpriv:util-linux
    shellcheck:shellcheck strace:strace sysctl:procps unshare:util-linux wrk:wrk)
stock_kernel=
if [[ $(uname -m) == x86_64 ]] && grep -qx ID=debian /etc/os-release; then
    stock_kernel=yes
    tools+=(busybox:busybox-static cpio:cpio modprobe:kmod qemu-system-x86_64:qemu-system-x86 strip:binutils
        xz:xz-utils)
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
if ! unshare --user --map-root-user --net --mount --pid --fork --mount-proc true; then
    echo "scripts/test.sh: a user may not make namespaces here (kernel.unprivileged_userns_clone, " \
        "kernel.apparmor_restrict_unprivileged_userns): run as root" >&2
    exit 1
fi

target="$(uname -m)-unknown-linux-musl"
stage="$(mktemp -d)"

# What fails is listed in the end; the other steps still run.
failed=()
finish() {
    local status=$?
    rm -rf "$stage"
    if ((${#failed[@]})); then
        echo "== failed"
        printf '%s\n' "${failed[@]}"
        status=1
    fi
    exit "$status"
}
trap finish EXIT

step() {
    local before=${#failed[@]}
    echo "== $1"
    # What the step adds itself comes behind its name.
    "${@:2}" || failed=("${failed[@]:0:before}" "$1" "${failed[@]:before}")
}

check_format() {
    cargo fmt --check && cargo fmt --check --manifest-path fuzz/Cargo.toml
}

check_lints() {
    cargo clippy --all-targets --target "$target" -- -D warnings &&
        cargo clippy --manifest-path fuzz/Cargo.toml --all-targets -- -D warnings
}

# Every test, also where one fails: lists tests that failed, and crates that were not built or aborted.
run_tests() {
    cargo test --no-fail-fast "$@" 2>&1 | tee "$stage/tests" && return
    mapfile -t -O "${#failed[@]}" failed < <(sed -n -e 's/^test \(.*\) \.\.\. FAILED$/    \1/p' \
        -e 's/^error: could not compile.*/    &/p' -e 's/^    .\(--.*\).$/    \1/p' "$stage/tests")
    return 1
}

run_arm64_tests() {
    local target=aarch64-unknown-linux-musl
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64-static
    run_tests --target "$target" --lib && run_tests --target "$target" --test http reading::
}

# What has been found is tried again, then new inputs: the same each time, and not kept.
fuzz() {
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

step "format" check_format
step "lints" check_lints
step "shellcheck" shellcheck scripts/*.sh tests/*/*.sh tests/kubernetes/stage/*.sh .ci/run
echo "== static binaries"
scripts/build.sh
binary="target/$(dpkg --print-architecture)/tproxy-pod"
export PROGRAM="$PWD/$binary"
step "tests of $binary" run_tests --target "$target"
if [[ $stock_kernel ]]; then
    step "tests on a stock kernel, emulated" scripts/kernels.sh
else
    echo "== NOT on a stock kernel: scripts/kernels.sh needs Debian on x86_64"
fi
step "unit and HTTP tests for arm64, emulated" run_arm64_tests
step "fuzzing of requests" fuzz request 40000
step "fuzzing of scripts" fuzz script 40000
step "fuzzing of options" fuzz options 40000
step "fuzzing of netlink messages" fuzz netlink 200000
if ((EUID == 0)); then
    step "both stages of the Containerfile" \
        unshare --net --mount --pid --fork --kill-child --mount-proc tests/kubernetes/containerfile.sh
else
    echo "== not the first stage of the Containerfile: only root may run it here"
fi
if ((EUID == 0)) && [[ -w /sys/fs/cgroup/cgroup.procs || -w /sys/fs/cgroup/memory/cgroup.procs ]]; then
    step "death by want of memory" run_tests --target "$target" --test guard -- --ignored death::
else
    echo "== not death by want of memory: only root may make control groups, where they can be changed"
fi
install -m 755 "$binary" scripts/demo.sh "$stage"
chmod 755 "$stage"
step "demo" run_demo "$binary" scripts/demo.sh
if ((EUID == 0)); then
    user=(setpriv --reuid 65534 --regid 65534 --clear-groups)
    if "${user[@]}" unshare --user --map-root-user true; then
        step "demo as an ordinary user" run_demo "$stage/tproxy-pod" "${user[@]}" "$stage/demo.sh"
    else
        echo "== no demo as an ordinary user: only root may make namespaces here"
    fi
fi
step "benchmark, quick" run_benchmark
