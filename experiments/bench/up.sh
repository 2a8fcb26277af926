#!/usr/bin/env bash
# The peer of `vcg bench up`: six ext4 images on loop devices and three tmpfs, made and mounted from a shell.
#
# Usage: unshare --mount up.sh DIRECTORY TMPFS_BYTES... -- IMAGE_BYTES...
# Prints "up" when all is mounted, waits for the end of its input, and takes everything down again.
set -euo pipefail

cd "$1"
shift
loops=()
mounts=()
take_down() {
	for ((i = ${#mounts[@]} - 1; i >= 0; i--)); do umount "${mounts[i]}"; done
	for loop in "${loops[@]}"; do losetup --detach "$loop"; done
	rm -f ./*.img
	rmdir ./d*
}
trap take_down EXIT

number=0
while [ "$1" != -- ]; do
	number=$((number + 1))
	mkdir "d$number"
	mount -t tmpfs -o "size=$1,nodev,nosuid" tmpfs "d$number"
	mounts+=("d$number")
	shift
done
shift
for bytes in "$@"; do
	number=$((number + 1))
	mkdir "d$number"
	fallocate --length "$bytes" "d$number.img"
	mkfs.ext4 -q -F -O ^has_journal "d$number.img"
	loop=$(losetup --find --show --direct-io=on "d$number.img")
	loops+=("$loop")
	mount -t ext4 -o noatime,lazytime,errors=remount-ro,nodev,nosuid "$loop" "d$number"
	mounts+=("d$number")
done
echo up
cat >/dev/null
