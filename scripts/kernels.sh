#!/usr/bin/env bash
# Runs end-to-end tests on Debian's stock kernels, each in a virtual machine.
set -euo pipefail

usage() {
    cat <<'TEXT'
scripts/kernels.sh [--all | VERSION…]: runs end-to-end tests on Debian's kernels.

  The versions are 5.10 (bullseye), 6.1 (bookworm) and 6.12 (trixie); without an
  argument it is 6.1. Each is the cloud kernel, boots in QEMU without KVM, and
  loads its modules by itself. --all takes them all, runs more tests, and boots
  one more time with ipv6.disable=1.

  The kernels come from the Debian mirror of this machine, once: they are kept in
  target/kernels, and never installed. The consoles' logs are there, too. It needs
  x86_64, rustup and Debian packages, and says which are missing; it needs no root.
TEXT
}

fail() {
    echo "scripts/kernels.sh: $*" >&2
    exit 1
}

# Crates of tests/ with arguments: for each kernel, for kernels with and without table owners (Linux 5.12),
# for each kernel with --all, and for a kernel without IPv6. The first needs a kernel without loaded modules.
tests=("kernels --ignored --test-threads 1 module" "capture cni:: packets::" "guard lifecycle:: readiness::")
# The skipped test needs python3, which the machine lacks; scripts/test.sh runs it.
tests_with_owners=("capture bridge:: from_node:: --skip no_forged_frame_diverts_an_open_connection")
tests_without_owners=("kernels --ignored without_an_owner")
more_tests=("capture shared_routing:: source_validation:: neighbours::")
tests_without_ipv6=("kernels --ignored an_ipv6_block"
    "capture --exact packets::a_captured_port_of_a_pod_is_answered
        packets::a_captured_port_of_an_address_without_a_pod_is_answered
        packets::every_block_and_every_port_of_the_lists_is_captured
        packets::a_node_that_validates_sources_by_mark_captures_all_clients
        packets::ports_and_addresses_beside_the_lists_reach_what_they_reached_before
        packets::a_firewall_of_the_node_has_to_accept_the_mark_itself"
    "guard --exact lifecycle::a_port_that_is_taken_is_named
        lifecycle::flushing_and_deleting_from_outside_do_not_stop_the_interception")

# Time-out of a machine, in seconds; it usually takes two minutes.
readonly seconds=900

declare -A suites=([5.10]=bullseye [6.1]=bookworm [6.12]=trixie)
versions=() all=
for word; do
    case $word in
        --all) all=yes; versions=(5.10 6.1 6.12) ;;
        -h | --help) usage; exit 0 ;;
        5.10 | 6.1 | 6.12) versions+=("$word") ;;
        *) usage >&2; exit 2 ;;
    esac
done
((${#versions[@]})) || versions=(6.1)
cd "$(dirname "$0")/.."

# command:package, of Debian
tools=(busybox:busybox-static cpio:cpio curl:curl file:file ip:iproute2 iptables:iptables ipvsadm:ipvsadm
    ldd:libc-bin modprobe:kmod nft:nftables nsenter:util-linux python3:python3
    qemu-system-x86_64:qemu-system-x86 setpriv:util-linux strace:strace strip:binutils
    sysctl:procps xz:xz-utils)
PATH="$PATH:/usr/sbin:/sbin"
missing=()
for tool in "${tools[@]}"; do
    command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}")
done
((${#missing[@]} == 0)) || fail "missing: run as root: apt-get install ${missing[*]}"
[[ $(uname -m) == x86_64 ]] || fail "this machine is not x86_64"

# --- the kernels ---

kernels=$PWD/target/kernels
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

private_apt() { # SUITE PROGRAM ARGUMENT…: runs a program of apt with its own root and this machine's mirror
    local suite=$1 program=$2 release mirror root=$kernels/apt
    mkdir -p "$root/state/lists/partial" "$root/cache/archives/partial"
    : >"$root/status"
    : >"$root/$suite.list"
    release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    for part in "" -security; do
        # shellcheck disable=SC2016 # for apt
        mirror=$(apt-get indextargets --format '$(REPO_URI)' \
            "Created-By: Packages" "Release: $release$part" | sed -n 1p)
        [[ -n $mirror ]] || fail "apt knows no mirror of $release$part: is this Debian, and has apt-get update run?"
        echo "deb [arch=amd64 signed-by=$keyring] $mirror $suite$part main" >>"$root/$suite.list"
    done
    # The Release file of an old suite may have expired.
    "$program" -qq -o Dir::State="$root/state" -o Dir::State::status="$root/status" -o Dir::Cache="$root/cache" \
        -o Dir::Etc::SourceList="$root/$suite.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::PreferencesParts=/dev/null -o APT::Architecture=amd64 -o APT::Sandbox::User=root \
        -o Acquire::Languages=none -o Acquire::Check-Valid-Until=false "${@:3}"
}

has_kernel() { # VERSION: downloads it to target/kernels/VERSION, with an index of its modules
    local version=$1 suite=${suites[$1]} package
    [[ ! -e $kernels/$version ]] || return 0
    echo "scripts/kernels.sh: downloading Linux $version of $suite" >&2
    private_apt "$suite" apt-get update
    package=$(private_apt "$suite" apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
    [[ $package == linux-image-"$version".* ]] || fail "$suite has no Linux $version, but: ${package:-none}"
    rm -rf "$kernels/new"
    mkdir -p "$kernels/new/lib"
    (cd "$kernels/new" && private_apt "$suite" apt-get download "$package")
    dpkg -x "$kernels/new/$package"_*.deb "$kernels/new"
    # modprobe looks in lib; newer packages have usr/lib.
    [[ ! -d $kernels/new/usr/lib/modules ]] || ln -s ../usr/lib/modules "$kernels/new/lib/modules"
    rm "$kernels/new/$package"_*.deb
    depmod -b "$kernels/new" "$(release_of new)"
    mv "$kernels/new" "$kernels/$version"
}

release_of() { # VERSION: prints its uname -r
    basename "$kernels/$1"/lib/modules/*
}

# --- the root filesystem of the machine ---

put() { # FILE…: copies it into $root, with its libraries
    local file library
    for file; do
        cp --dereference --parents "$file" "$root"
        for library in $(ldd "$file" 2>/dev/null | grep -o '/[^ ]*'); do
            [[ -e $root$library ]] || cp --dereference --parents "$library" "$root"
        done
    done
}

put_tools() {
    local tool
    mkdir -p "$root"/{dev,etc,proc,run,sys,tests,tmp,usr/{bin,lib,lib64,sbin}}
    for tool in bin lib lib64 sbin; do
        ln -s "usr/$tool" "$root/$tool"
    done
    for tool in bridge busybox curl depmod file ip ipvsadm modprobe nft nsenter prlimit setpriv ss strace sysctl unshare \
        ip{,6}tables{,-legacy}{,-save,-restore}; do
        put "$(command -v "$tool")"
    done
    # Files that the tools open at run time
    put "$(dirname "$(ldd "$(command -v iptables-legacy)" | grep -o '/[^ ]*libxtables[^ ]*')")"/xtables/*.so
    cp --dereference --parents /etc/protocols /etc/services /usr/share/misc/magic.mgc "$root"
    for tool in $(busybox --list); do
        [[ -e $root/usr/bin/$tool || -e $root/usr/sbin/$tool ]] || ln -s "$(command -v busybox)" "$root/usr/bin/$tool"
    done
}

put_modules() { # VERSION: copies the network's modules and their dependencies
    local version=$1 release from names files
    release=$(release_of "$version")
    from=$kernels/$version
    names=$(cd "$from/lib/modules/$release/kernel/net" && find bridge ipv4 ipv6 netfilter -name '*.ko*')
    names=$(sed 's|.*/||; s|\.ko.*||' <<<"$names")
    # shellcheck disable=SC2086 # names have no blanks
    files=$(modprobe -d "$from" -S "$release" --show-depends -a $names br_netfilter dummy ipvlan macvlan veth vxlan)
    files=$(sed -n "s|^insmod .*\(lib/modules/[^ ]*\).*|\1|p" <<<"$files" | sort -u)
    # shellcheck disable=SC2086 # paths have no blanks
    (cd "$from" && cp --parents $files "lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$root")
    find "$root/lib/modules/" -name '*.xz' -exec xz -d {} +
    depmod -b "$root" "$release"
}

put_tests() { # CRATE…: copies the tests, and the program to the path that they expect
    local crate
    install -D "$PROGRAM" "$root$PROGRAM"
    mkdir -p "$root$PWD/target/x86_64-unknown-linux-musl/tmp" # CARGO_TARGET_TMPDIR
    for crate; do
        strip -o "$root/tests/$crate" "${executables[$crate]}"
    done
    install tests/kernels/init.sh "$root/init"
}

declare -A executables=()
build() { # CRATE…: as static executables
    local options=() crate path lines
    for crate; do
        options+=(--test "$crate")
    done
    PROGRAM=$PWD/$(scripts/build.sh amd64)
    export PROGRAM
    lines=$(cargo test --target x86_64-unknown-linux-musl "${options[@]}" --no-run --message-format=json-render-diagnostics |
        python3 -c '
import json, sys
for message in map(json.loads, sys.stdin):
    if message.get("executable") and message["profile"]["test"]:
        print(message["target"]["name"], message["executable"])')
    while read -r crate path; do
        executables[$crate]=$path
    done <<<"$lines"
}

boot() { # VERSION KERNEL-PARAMETERS TEST…: boots, runs the tests, and fails unless all pass
    local version=$1 parameters=$2 status=0 log passed
    shift 2
    log=$kernels/$version${parameters:+-$parameters}.log
    root=$kernels/root
    rm -rf "$root"
    put_tools
    put_modules "$version"
    put_tests "${@%% *}"
    printf '%s\n' "${@//$'\n'/ }" >"$root/tests/list"
    (cd "$root" && find . | cpio --quiet --create --format=newc --owner=0:0) >"$kernels/root.cpio"
    echo "scripts/kernels.sh: booting Linux $version ${parameters:+with $parameters }(the console: $log)" >&2
    # Mitigations take a third of an emulated processor's time.
    timeout "$seconds" qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 2048 -nodefaults -no-reboot \
        -display none -serial "file:$log" -kernel "$kernels/$version"/boot/vmlinuz-* -initrd "$kernels/root.cpio" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off $parameters" </dev/null &
    machine=$!
    wait "$machine" || status=$?
    machine=
    passed=$(grep -c '^tests: .*: ok\. ' "$log" || :)
    if ((status)) || ! grep -q '^verdict: passed$' "$log" || ((passed != $#)); then
        cat "$log" >&2
        ((status != 124)) || echo "scripts/kernels.sh: it did not end within $seconds s" >&2
        fail "Linux $version${parameters:+ with $parameters}: failed: its console is above, and in $log"
    fi
    sed -n 's/^kernel: //p; s/^tests: /  /p' "$log"
}

machine=
trap '[[ -z $machine ]] || kill "$machine"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

[[ -z $all ]] || tests+=("${more_tests[@]}")
for version in "${versions[@]}"; do
    has_kernel "$version"
done
build "${tests[@]%% *}" "${tests_with_owners[@]%% *}" "${tests_without_ipv6[@]%% *}"
for version in "${versions[@]}"; do
    case $version in
        5.10) boot "$version" "" "${tests[@]}" "${tests_without_owners[@]}" ;;
        *) boot "$version" "" "${tests[@]}" "${tests_with_owners[@]}" ;;
    esac
done
[[ -z $all ]] || boot 6.1 ipv6.disable=1 "${tests_without_ipv6[@]}"
