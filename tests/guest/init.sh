#!/bin/busybox sh
# The first process of the guest, out of the initramfs: loads the modules, puts the root together, and hands over to the
# script that the host left in the share. The host's root stays as it is: everything is written to memory.
set -e
bb=/bin/busybox
$bb mkdir -p /proc /lower /upper /root /project
$bb mount -t proc proc /proc
for module in $($bb cat /modules/order); do
    $bb insmod "/modules/$module"
done

# "loose" trusts what was read once: the host's files are not expected to change while the guest runs.
$bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /lower
$bb mount -t tmpfs -o mode=755 upper /upper
$bb mkdir /upper/work
$bb cp -a /tree /upper/data
$bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /root

$bb mount -t tmpfs -o mode=755 run /root/run
$bb mkdir /root/run/share
$bb mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none share /root/run/share

# What other processes of the host keep in /tmp must not be taken for something of the guest's.
project=$($bb cat /root/run/share/project)
$bb mount --bind "/root$project" /project
$bb mount -t tmpfs -o mode=1777 tmp /root/tmp
$bb mkdir -p "/root$project"
$bb mount --move /project "/root$project"

$bb mount -t sysfs sysfs /root/sys
$bb mount -t tracefs tracefs /root/sys/kernel/tracing
$bb mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
echo "+cpuset +cpu +io +memory +pids" >/root/sys/fs/cgroup/cgroup.subtree_control
$bb mount -t devtmpfs devtmpfs /root/dev
$bb mkdir -p /root/dev/pts /root/dev/shm
$bb mount -t devpts devpts /root/dev/pts
$bb mount -t tmpfs -o mode=1777 shm /root/dev/shm
$bb mount --move /proc /root/proc
exec $bb switch_root /root /bin/sh /run/share/session
