"""The watch on what tests leave behind, watched: each kind is found, and what goes in time is not complained of."""

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from leftovers import SHARED_MEMORY, nothing_left

WAIT_S = 0.2


@contextmanager
def complaint(watches, words):
    """Whatever is left behind in here must be complained of in these words."""
    with pytest.raises(pytest.fail.Exception, match=words), nothing_left(*watches, may_take_s=WAIT_S):
        yield


def test_process(watches, tmp_path):
    """A keeper that nobody has stopped is named."""
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with complaint(watches, f"processes left(.|\n)*hpcmagic.keeper {tmp_path}"):
        keeper = subprocess.Popen(
            [*command, "hpcmagic.keeper", str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        keeper.stdout.readline()  # it runs: its words are there to be seen
        keeper.stdout.close()
    keeper.stdin.close()
    keeper.wait(5)


def test_shared_memory(watches):
    """A segment that nobody has mapped is named, and removed."""
    if not SHARED_MEMORY.is_dir():
        pytest.skip("no /dev/shm")
    path = SHARED_MEMORY / f"vader_segment.test.{os.getpid()}"
    with complaint(watches, f"shared memory left(.|\n)*{path}"):
        path.write_bytes(b"left")
    assert not path.exists()


@pytest.mark.parametrize("name", ["x.sock", "ompi.host.0/pid.4194305"])
def test_temporary_file(watches, name):
    """A file in the system's folder for temporary ones is named, also one of Open MPI's."""
    path = Path(tempfile.gettempdir(), name)
    with complaint(watches, f"temporary files left(.|\n)*{path}"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    path.unlink()


def test_thread(watches):
    """A thread that runs on is named; one that ends in time is not."""
    over = threading.Event()
    with complaint(watches, "threads left(.|\n)*left-behind"):
        thread = threading.Thread(target=over.wait, name="left-behind")
        thread.start()
    over.set()
    thread.join()
    with nothing_left(*watches):
        threading.Timer(0.1, int).start()


def test_context(watches):
    """ZeroMQ's threads of a context that nobody has closed are named, and a socket's address."""
    context = zmq.Context()
    with complaint(watches, r"ZMQbg(.|\n)*127\.0\.0\.1"):
        socket = context.socket(zmq.PUB)
        socket.bind("tcp://127.0.0.1:*")
    socket.close()
    context.destroy(linger=0)


def test_descriptor(watches, tmp_path):
    """An open file is named."""
    with complaint(watches, f"descriptors left(.|\n)*{tmp_path}/open"):
        descriptor = os.open(tmp_path / "open", os.O_CREAT | os.O_RDWR)
    os.close(descriptor)
