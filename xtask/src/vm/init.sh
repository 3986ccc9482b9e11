#!/bin/busybox sh
# The first process of the machine. What it says goes to the second serial line; the kernel has the first for itself.
/bin/busybox --install -s /bin
# Emulated, the verifier takes its time.
export STEADFAST_LAB_STARTS_WITHIN=300
export PATH=/usr/sbin:/sbin:/usr/bin:/bin HOME=/root RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw 115200 2>/dev/null
# Before 5.11 a map is counted as locked memory.
ulimit -l unlimited
modprobe -q virtio_pci
modprobe -q virtio_net
ip link set lo up
ip link set eth0 up
ip link add lb0 type veth peer name peer0
ip link set lb0 up
ip link set peer0 up

step() {
    name=$1
    shift
    echo "@@ begin $name"
    "$@"
    echo "@@ end $name $?"
}

. /steps
echo "@@ done $(uname -r)"
poweroff -f
