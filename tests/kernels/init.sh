#!/bin/sh
# The init process of the virtual machine of scripts/kernels.sh: runs the tests of /tests/list, one crate with
# arguments a line, prints the results, and powers off.

# Commands that no package of the initramfs has are busybox's.
busybox mount -t proc proc /proc
busybox mkdir /busybox
busybox --install -s /busybox
export PATH=/usr/sbin:/usr/bin:/busybox HOME=/ LC_ALL=C.UTF-8 RUST_BACKTRACE=1 PATIENCE=60 HAS_ALL=yes
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
ip link set lo up
stty -onlcr
# The kernel does not load it on demand.
modprobe br_netfilter

# Keeps kernel messages off the console.
echo 1 >/proc/sys/kernel/printk

seconds() { cut -d. -f1 /proc/uptime; }

echo "kernel: Linux $(uname -r), up after $(seconds) s"
bad=
while read -r crate arguments; do
    echo "== $crate $arguments"
    began=$(seconds)
    # shellcheck disable=SC2086 # they are words
    unshare --net --mount "/tests/$crate" $arguments 2>&1 | tee /tmp/output
    result=$(grep '^test result: ' /tmp/output)
    echo "tests: $crate $arguments: ${result#test result: }; $(($(seconds) - began)) s"
    case $result in
        "test result: ok. 0 passed"*) bad="$bad $crate" ;;
        "test result: ok. "*) ;;
        *) bad="$bad $crate" ;;
    esac
done </tests/list
if [ -n "$bad" ]; then
    echo "verdict: failed:$bad"
else
    echo "verdict: passed"
fi
poweroff -f
