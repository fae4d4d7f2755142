#!/usr/bin/env bash
# Runs end-to-end tests on Debian's stock kernels, each in a virtual machine.
set -euo pipefail

usage() {
    cat <<'TEXT'
scripts/kernels.sh [--all | KERNEL…]: runs end-to-end tests on Debian's kernels.

  The kernels are 5.10 (bullseye), 6.1 (bookworm) and 6.12 (trixie) for amd64, and
  6.1-arm64 (bookworm); without an argument it is 6.1. Each is the cloud kernel,
  boots in QEMU without KVM, and loads its modules by itself. --all takes them
  all, runs more tests, and boots one more time with ipv6.disable=1.

  The kernels, and the tools that the tests call there (of bookworm), come from the
  Debian mirror of this machine, once: they are kept in target/kernels, and never
  installed. The consoles' logs are there, too. It needs Debian on x86_64 and
  rustup, and installs missing packages as root; otherwise it says what is missing.
TEXT
}

fail() {
    echo "scripts/kernels.sh: $*" >&2
    exit 1
}

# Crates of tests/ ("lib": the unit tests) with arguments: for each kernel, for kernels with and without table
# owners (Linux 5.12), for arm64; the same with --all; and for a kernel without IPv6. The first needs a kernel
# without loaded modules.
tests=("kernels --ignored --test-threads 1 module" "capture cni:: packets::" "guard lifecycle:: readiness::")
tests_with_owners=("capture bridge:: icmp:: own_addresses::")
tests_without_owners=("kernels --ignored without_an_owner")
tests_for_arm64=("lib")
more_tests=("capture shared_routing:: source_validation:: neighbours:: services::translation::" "server acknowledgements::")
# The skipped tests need clients that send at once, for which an emulated machine is too slow.
more_tests_with_owners=("capture from_node:: services::bridge:: services::life:: --skip a_stop_under_load")
more_tests_without_owners=("capture icmp:: own_addresses:: --skip bridge")
# Each architecture has its own numbers of system calls.
more_tests_for_arm64=("guard sandbox:: breach:: death::" "http reading::")
tests_without_ipv6=("kernels --ignored an_ipv6_block"
    "capture --exact packets::a_captured_port_of_a_pod_is_answered
        packets::a_captured_port_of_an_address_without_a_pod_is_answered
        packets::every_block_and_every_port_of_the_lists_is_captured
        packets::a_node_that_validates_sources_by_mark_captures_all_clients
        packets::ports_and_addresses_beside_the_lists_reach_what_they_reached_before
        packets::a_firewall_of_the_node_has_to_accept_the_mark_itself"
    "guard --exact lifecycle::a_port_that_is_taken_is_named
        lifecycle::flushing_and_deleting_from_outside_do_not_stop_the_interception")

# Time-out of a machine, in seconds.
readonly seconds=3600

declare -A suites=([5.10]=bullseye [6.1]=bookworm [6.12]=trixie [6.1-arm64]=bookworm)
kernels=() all=
for word; do
    case $word in
        --all) all=yes; kernels=(5.10 6.1 6.12 6.1-arm64) ;;
        -h | --help) usage; exit 0 ;;
        5.10 | 6.1 | 6.12 | 6.1-arm64) kernels+=("$word") ;;
        *) usage >&2; exit 2 ;;
    esac
done
((${#kernels[@]})) || kernels=(6.1)
cd "$(dirname "$0")/.."
[[ $(uname -m) == x86_64 ]] || fail "this machine is not x86_64"

architecture_of() { # KERNEL: prints Debian's name
    case $1 in
        *-arm64) echo arm64 ;;
        *) echo amd64 ;;
    esac
}

declare -A triples=([amd64]=x86_64-unknown-linux-musl [arm64]=aarch64-unknown-linux-musl)
architectures=()
for kernel in "${kernels[@]}"; do
    architectures+=("$(architecture_of "$kernel")")
done
mapfile -t architectures < <(printf '%s\n' "${architectures[@]}" | sort -u)

# command:package, of Debian
tools=(cpio:cpio modprobe:kmod python3:python3 xz:xz-utils)
for architecture in "${architectures[@]}"; do
    case $architecture in
        amd64) tools+=(qemu-system-x86_64:qemu-system-x86) ;;
        arm64) tools+=(qemu-system-aarch64:qemu-system-arm) ;;
    esac
done
PATH="$PATH:/usr/sbin:/sbin"
missing=()
for tool in "${tools[@]}"; do
    command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}")
done
if ((${#missing[@]})); then
    ((EUID == 0)) || fail "missing: run as root: apt-get install ${missing[*]}"
    echo "scripts/kernels.sh: installing ${missing[*]}" >&2
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi

# --- Debian's packages ---

store=$PWD/target/kernels
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

private_apt() { # SUITE ARCHITECTURE PROGRAM ARGUMENT…: runs a program of apt, with its own root and our mirror
    local suite=$1 architecture=$2 program=$3 release mirror root=$store/apt/$2
    mkdir -p "$root/state/lists/partial" "$root/cache/archives/partial"
    : >"$root/status"
    : >"$root/$suite.list"
    release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    for part in "" -security; do
        # shellcheck disable=SC2016 # for apt
        mirror=$(apt-get indextargets --format '$(REPO_URI)' \
            "Created-By: Packages" "Release: $release$part" | sed -n 1p)
        [[ -n $mirror ]] || fail "apt knows no mirror of $release$part: is this Debian, and has apt-get update run?"
        echo "deb [arch=$architecture signed-by=$keyring] $mirror $suite$part main" >>"$root/$suite.list"
    done
    # The Release file of an old suite may have expired.
    "$program" -qq -o Dir::State="$root/state" -o Dir::State::status="$root/status" -o Dir::Cache="$root/cache" \
        -o Dir::Etc::SourceList="$root/$suite.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::PreferencesParts=/dev/null -o APT::Architecture="$architecture" -o APT::Sandbox::User=root \
        -o Acquire::Languages=none -o Acquire::Check-Valid-Until=false "${@:4}"
}

has_kernel() { # KERNEL: downloads it to target/kernels/KERNEL, with an index of its modules
    local kernel=$1 suite=${suites[$1]} architecture package new=$store/new
    [[ ! -e $store/$kernel ]] || return 0
    echo "scripts/kernels.sh: downloading Linux $kernel of $suite" >&2
    architecture=$(architecture_of "$kernel")
    private_apt "$suite" "$architecture" apt-get update
    package=$(private_apt "$suite" "$architecture" apt-cache depends "linux-image-cloud-$architecture" |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
    [[ $package == linux-image-"${kernel%%-*}".* ]] || fail "$suite has no Linux ${kernel%%-*}, but: ${package:-none}"
    rm -rf "$new"
    mkdir -p "$new/lib"
    (cd "$new" && private_apt "$suite" "$architecture" apt-get download "$package")
    dpkg -x "$new/$package"_*.deb "$new"
    # modprobe looks in lib; newer packages have usr/lib.
    [[ ! -d $new/usr/lib/modules ]] || ln -s ../usr/lib/modules "$new/lib/modules"
    rm "$new/$package"_*.deb
    depmod -b "$new" "$(release_of new)"
    mv "$new" "$store/$kernel"
}

release_of() { # KERNEL: prints its uname -r
    basename "$store/$1"/lib/modules/*
}

# Debian packages of the programs that the tests and init.sh call; usr-is-merged stands in for usrmerge, which
# needs all of perl.
programs=(busybox-static coreutils curl file iproute2 iptables ipvsadm kmod netbase nftables procps
    python3-minimal strace usr-is-merged util-linux)

has_tools() { # ARCHITECTURE: downloads the programs and their libraries to target/kernels/tools-ARCHITECTURE
    local architecture=$1 package name new=$store/new
    # It says which programs it has.
    [[ $(cat "$store/tools-$architecture/etc/programs" 2>/dev/null) != "${programs[*]}" ]] || return 0
    echo "scripts/kernels.sh: downloading the tools for $architecture" >&2
    private_apt bookworm "$architecture" apt-get update
    rm -rf "$new" "$store/apt/$architecture"/cache/archives/*.deb
    private_apt bookworm "$architecture" apt-get install --yes --download-only --no-install-recommends "${programs[@]}"
    mkdir -p "$new"/{dev,etc,proc,run,sys,tests,tmp,usr/{bin,lib,lib64,sbin}}
    for name in bin lib lib64 sbin; do
        ln -s "usr/$name" "$new/$name"
    done
    for package in "$store/apt/$architecture"/cache/archives/*.deb; do
        dpkg --fsys-tarfile "$package" | tar --extract --keep-directory-symlink --directory "$new"
        rm "$package"
    done
    rm -rf "$new"/usr/share/{doc,locale,man,perl*} "$new"/usr/lib/*/gconv
    # What the packages' scripts would link
    for name in ip{,6}tables{,-save,-restore}; do
        ln -s xtables-nft-multi "$new/usr/sbin/$name"
    done
    ln -s busybox "$new/bin/sh"
    echo "${programs[*]}" >"$new/etc/programs"
    rm -rf "$store/tools-$architecture"
    mv "$new" "$store/tools-$architecture"
}

# --- the root filesystem of the machine ---

put_modules() { # KERNEL: copies the network's modules and their dependencies
    local release from=$store/$1 names files
    release=$(release_of "$1")
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

put_tests() { # ARCHITECTURE CRATE…: copies the tests, and the program to the path that they expect
    local architecture=$1 crate program
    program=$PWD/target/$architecture/tproxy-pod
    install -D "$program" "$root$program"
    mkdir -p "$root$PWD/target/${triples[$architecture]}/tmp" # CARGO_TARGET_TMPDIR
    for crate in "${@:2}"; do
        install "${executables[$architecture/$crate]}" "$root/tests/$crate"
    done
    install tests/kernels/init.sh "$root/init"
}

declare -A executables=()
build() { # ARCHITECTURE CRATE…: as static executables
    local architecture=$1 options=() crate path lines
    for crate in "${@:2}"; do
        case $crate in
            lib) options+=(--lib) ;;
            *) options+=(--test "$crate") ;;
        esac
    done
    PROGRAM=$PWD/$(scripts/build.sh "$architecture")
    export PROGRAM
    lines=$(cargo test --target "${triples[$architecture]}" "${options[@]}" --no-run \
        --message-format=json-render-diagnostics |
        python3 -c '
import json, sys
for message in map(json.loads, sys.stdin):
    if message.get("executable") and message["profile"]["test"]:
        target = message["target"]
        print("lib" if target["kind"] == ["lib"] else target["name"], message["executable"])')
    while read -r crate path; do
        executables[$architecture/$crate]=$path
    done <<<"$lines"
}

declare -A consoles=([amd64]=ttyS0 [arm64]=ttyAMA0)
boot() { # KERNEL KERNEL-PARAMETERS TEST…: boots, runs the tests, and fails unless all pass
    local kernel=$1 parameters=$2 architecture emulator status=0 log passed
    shift 2
    architecture=$(architecture_of "$kernel")
    case $architecture in
        amd64) emulator=(qemu-system-x86_64 -cpu max) ;;
        # The standard algorithm of pointer authentication is slow to emulate.
        arm64) emulator=(qemu-system-aarch64 -machine virt -cpu "max,pauth-impdef=on") ;;
    esac
    log=$store/$kernel${parameters:+-$parameters}.log
    root=$store/root
    rm -rf "$root"
    cp -a "$store/tools-$architecture" "$root"
    put_modules "$kernel"
    put_tests "$architecture" "${@%% *}"
    printf '%s\n' "${@//$'\n'/ }" >"$root/tests/list"
    (cd "$root" && find . | cpio --quiet --create --format=newc --owner=0:0) >"$store/root.cpio"
    echo "scripts/kernels.sh: booting Linux $kernel ${parameters:+with $parameters }(the console: $log)" >&2
    # Mitigations take a third of an emulated processor's time.
    timeout "$seconds" "${emulator[@]}" -accel tcg -smp 2 -m 2048 -nodefaults -no-reboot \
        -display none -serial "file:$log" -kernel "$store/$kernel"/boot/vmlinuz-* -initrd "$store/root.cpio" \
        -append "console=${consoles[$architecture]} quiet panic=-1 mitigations=off $parameters" </dev/null &
    machine=$!
    wait "$machine" || status=$?
    machine=
    passed=$(grep -c '^tests: .*: ok\. ' "$log" || :)
    if ((status)) || ! grep -q '^verdict: passed$' "$log" || ((passed != $#)); then
        cat "$log" >&2
        ((status != 124)) || echo "scripts/kernels.sh: it did not end within $seconds s" >&2
        fail "Linux $kernel${parameters:+ with $parameters}: failed: its console is above, and in $log"
    fi
    sed -n 's/^kernel: //p; s/^tests: /  /p' "$log"
}

machine=
trap '[[ -z $machine ]] || kill "$machine"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

if [[ $all ]]; then
    tests+=("${more_tests[@]}")
    tests_with_owners+=("${more_tests_with_owners[@]}")
    tests_without_owners+=("${more_tests_without_owners[@]}")
    tests_for_arm64+=("${tests_with_owners[@]}" "${more_tests_for_arm64[@]}")
fi
for kernel in "${kernels[@]}"; do
    has_kernel "$kernel"
done
for architecture in "${architectures[@]}"; do
    has_tools "$architecture"
    build "$architecture" "${tests[@]%% *}" "${tests_with_owners[@]%% *}" "${tests_for_arm64[@]%% *}" \
        "${tests_without_ipv6[@]%% *}"
done
for kernel in "${kernels[@]}"; do
    case $kernel in
        5.10) boot "$kernel" "" "${tests[@]}" "${tests_without_owners[@]}" ;;
        6.1-arm64) boot "$kernel" "" "${tests[@]}" "${tests_for_arm64[@]}" ;;
        *) boot "$kernel" "" "${tests[@]}" "${tests_with_owners[@]}" ;;
    esac
done
[[ -z $all ]] || boot 6.1 ipv6.disable=1 "${tests_without_ipv6[@]}"
