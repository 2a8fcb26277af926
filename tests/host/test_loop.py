"""Loop devices on the real kernel: bound with their flags at once, given back by themselves, shared with others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vcg import storage
from vcg.linux import loop, mount

pytestmark = pytest.mark.usefixtures("root")
IMAGE_BYTES = 4 << 20


@pytest.fixture
def make_image(roots: Any) -> Callable[[str], Path]:
    def make(name: str = "d1") -> Path:
        image: Path = roots.state_root / f"{name}.img"
        storage.allocate(image, IMAGE_BYTES)
        return image

    return make


def setting(device: Path, name: str) -> str:
    return Path("/sys/block", device.name, "loop", name).read_text().strip()


def is_given_back(folder: Path) -> bool:
    """Whether no loop device is bound to a file below the folder, now or within two seconds (autoclear is deferred)."""
    deadline = time.monotonic() + 2
    while loop.backed_by(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def can_do_direct_io(image: Path) -> bool:
    try:
        os.close(os.open(image, os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_an_image_is_bound_with_autoclear_and_direct_io_where_its_filesystem_can(make_image: Any) -> None:
    image = make_image()
    bound = loop.attach(image)
    try:
        assert setting(bound.path, "backing_file") == str(image)
        assert setting(bound.path, "autoclear") == "1"
        assert setting(bound.path, "dio") == str(int(can_do_direct_io(image)))
        assert int(Path("/sys/block", bound.path.name, "size").read_text()) * 512 == IMAGE_BYTES
        number = bound.path.stat().st_rdev
        assert bound.device == (os.major(number), os.minor(number))
        assert not os.get_inheritable(bound.fd)
    finally:
        os.close(bound.fd)
    assert is_given_back(image.parent)


def test_what_is_written_to_the_device_is_in_the_image(make_image: Any) -> None:
    image = make_image()
    bound = loop.attach(image)
    try:
        os.pwrite(bound.fd, b"vcg" * 1024, 4096)
        os.fsync(bound.fd)
    finally:
        os.close(bound.fd)
    assert is_given_back(image.parent)
    assert image.read_bytes()[4096 : 4096 + 3072] == b"vcg" * 1024


def test_a_mounted_device_lives_as_long_as_its_mount(make_image: Any, roots: Any, child_that: Any) -> None:
    image = make_image()
    storage.make_filesystems([image])

    def act() -> tuple[int, int]:
        mount.enter_private_namespace()
        return storage.mount_ext4(image, roots.mount_root)

    with child_that(act) as child:
        (device,) = loop.backed_by(roots.state_root)
        number = device.stat().st_rdev
        assert child.said == (os.major(number), os.minor(number))
        assert any(entry.source == str(device) for entry in mount.mounts(child.pid))
    assert is_given_back(roots.state_root)


def test_devices_are_found_by_the_folder_of_their_image_even_if_it_is_deleted(make_image: Any, roots: Any) -> None:
    image = make_image()
    bound = loop.attach(image)
    try:
        image.unlink()
        assert loop.backed_by(roots.state_root) == {bound.path: image}
        assert loop.backed_by(roots.state_root.parent) == {bound.path: image}
        assert loop.backed_by(roots.mount_root) == {}
        assert loop.backed_by(image.with_suffix("")) == {}
    finally:
        os.close(bound.fd)
    assert is_given_back(roots.state_root)


def test_a_device_may_be_detached_again_and_while_it_is_open(make_image: Any, roots: Any) -> None:
    bound = loop.attach(make_image())
    try:
        loop.detach(bound.path)
        loop.detach(bound.path)
        assert loop.backed_by(roots.state_root) == {bound.path: roots.state_root / "d1.img"}
    finally:
        os.close(bound.fd)
    assert is_given_back(roots.state_root)


def test_a_device_that_is_not_bound_may_be_detached(make_image: Any, roots: Any) -> None:
    bound = loop.attach(make_image())
    os.close(bound.fd)
    assert is_given_back(roots.state_root)
    loop.detach(bound.path)
    assert loop.backed_by(roots.state_root) == {}


def test_threads_that_attach_at_once_get_different_devices(make_image: Any, roots: Any) -> None:
    images = [make_image(f"d{number}") for number in range(1, 9)]
    with ThreadPoolExecutor(2) as threads:
        bound = list(threads.map(loop.attach, images))
    try:
        assert len({one.device for one in bound}) == len(images)
        assert loop.backed_by(roots.state_root) == {one.path: image for one, image in zip(bound, images, strict=True)}
    finally:
        for one in bound:
            os.close(one.fd)
    assert is_given_back(roots.state_root)


def test_an_image_that_cannot_be_bound_is_named(roots: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.img"):
        loop.attach(roots.state_root / "missing.img")
    with pytest.raises(OSError, match=str(roots.state_root)):
        loop.attach(roots.state_root)
    assert loop.backed_by(roots.state_root) == {}
