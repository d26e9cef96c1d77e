"""A model of a disk that loses power: what may stand there after any prefix of the calls that a process made.

Calls are recorded by strace. A write, and a name in a folder, are certain to be on the disk once their file or folder was
synced after them; before that, each may be there or not, whatever came first (as ALICE and CrashMonkey have it, and more
than ext4, XFS or Btrfs would do: a rename may leave both names, or neither). Names of one place keep their order.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path

import cloudpickle

from thess_agg_dagster.runs.ahead import PIXELS

#: Calls that change files and folders, or tell where the next write goes.
CALLS = (
    "openat,close,read,lseek,write,pwrite64,writev,pwritev,ftruncate,truncate,fallocate,copy_file_range,sendfile,dup,"
    "fcntl,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,fsync,fdatasync,"
    "sync,syncfs,execve"
)
_UNKNOWN = {"fallocate", "copy_file_range", "sendfile", "truncate", "pwritev", "symlink", "symlinkat", "execve", "sync"}

#: What a folder holds, by path within it; ``None`` for a folder.
Tree = dict[str, bytes | None]

# More undecided operations than this are not tried in all combinations, but so many of them by chance.
_ALL_OF, _BY_CHANCE = 7, 24


def traced(work: Callable[[], object], *options: str) -> tuple[int, str]:
    """Do ``work`` in a child process under strace; its exit status, and what strace wrote.

    The child is not forked from here: threads of a pytest process may hold locks, which would stay locked in it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["thess_agg_dagster.runs.batch", *PIXELS])
    waiting, go = context.Pipe(duplex=False)
    child = context.Process(target=_do, args=(cloudpickle.dumps(work), waiting))
    child.start()
    waiting.close()
    command = ["strace", "-f", "-qq", "-xx", "-s", str(2**26), *options, "-o", "/dev/stdout", "-p", str(child.pid)]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as strace:
            # Attached once the kernel says so; strace itself is told not to.
            while not re.search(r"TracerPid:\s+[1-9]", Path(f"/proc/{child.pid}/status").read_text()):
                if strace.poll() is not None:
                    raise RuntimeError("strace cannot attach; does the container allow ptrace?")
            go.send(os.environ.copy())
            assert strace.stdout is not None
            log = strace.stdout.read()
        child.join()
        assert child.exitcode is not None
        return child.exitcode, log
    finally:
        child.kill()


def _do(work: bytes, waiting: Connection) -> None:
    code = 1
    try:
        function = cloudpickle.loads(work)
        os.environ.update(waiting.recv())
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@dataclass(frozen=True)
class Call:
    """One finished call: the thread, its name, its arguments as strace writes them, and what it returned."""

    thread: str
    name: str
    args: tuple[str, ...]
    result: int

    def text(self, number: int) -> str:
        """An argument that is a text."""
        return b"".join(_strings(self.args[number])).decode()


def calls(log: str) -> Iterator[Call]:
    """The calls of a log that succeeded, in the order in which they ended; a ``close`` when it began, since another thread
    may be given its number before it has ended."""
    unfinished: dict[str, str] = {}
    for line in log.splitlines():
        thread, _, text = line.partition(" ")
        text = text.strip()
        if text.endswith("<unfinished ...>"):
            begun = text.removesuffix("<unfinished ...>")
            if closed := re.match(r"close\((\d+)", begun):
                yield Call(thread, "close", (closed[1],), 0)
            else:
                unfinished[thread] = begun
            continue
        if resumed := re.match(r"<\.\.\. (\w+) resumed>", text):
            if resumed[1] == "close":
                continue
            text = unfinished.pop(thread) + text[resumed.end() :]
        if found := re.match(r"(\w+)\((.*)\)\s+= (\d+)", text, re.DOTALL):
            yield Call(thread, found[1], tuple(re.split(r", (?![^\[{]*[\]}])", found[2])), int(found[3]))


def calls_with_paths(log: str, root: Path) -> Iterator[tuple[str, str, str]]:
    """Thread, name and path of each call of a log (with ``-y``) on something below ``root``, in order."""
    below = f"{root}/"
    for line in log.splitlines():
        if found := re.match(r"(\d+)\s+(\w+)\(", line):
            texts = [data.decode(errors="replace") for data in _strings(line.replace("<", '"').replace(">", '"'))]
            paths = [text for text in texts if text.startswith(below) and "\n" not in text]
            if paths:
                yield found[1], found[2], paths[0]


def _strings(text: str) -> list[bytes]:
    return [bytes.fromhex(each.replace("\\x", "")) for each in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', text)]


@dataclass(frozen=True)
class Entry:
    """A name in a folder now stands for a file or folder, or for nothing."""

    node: int  # the folder, whose sync makes it certain
    name: str
    to: int | None


@dataclass(frozen=True)
class Data:
    """Bytes written into a file; ``None``: cut (or extended) to ``offset``."""

    node: int
    offset: int
    data: bytes | None


@dataclass(frozen=True)
class Sync:
    node: int


Operation = Entry | Data | Sync


@dataclass
class _File:
    node: int
    offset: int = 0
    append: bool = False


@dataclass
class Disk:
    """A folder as it stood, and the operations that a log holds on it."""

    root: Path
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)

    @classmethod
    def recorded(cls, root: Path, before: Tree, log: str) -> Disk:
        disk = cls(root, {0: {}})
        for path, data in sorted(before.items()):
            node = disk._new(folder=data is None, data=data or b"")
            disk.names[disk._find(str(Path(path).parent))][Path(path).name] = node
        _Recorder(disk).play(log)
        return disk

    def _new(self, folder: bool, data: bytes = b"") -> int:
        node = len(self.names) + len(self.files)
        if folder:
            self.names[node] = {}
        else:
            self.files[node] = data
        return node

    def _find(self, path: str) -> int:
        node = 0
        for name in Path(path).parts:
            node = self.names[node][name]
        return node

    def states(self, seed: int = 0) -> Iterator[tuple[int, Tree]]:
        """What may stand on the disk after each prefix (its length is given), in some orders of what is not synced."""
        chance = random.Random(seed)
        for length in range(len(self.operations) + 1):
            prefix = self.operations[:length]
            synced: set[int] = set()
            certain = [False] * length
            for number in reversed(range(length)):
                operation = prefix[number]
                if isinstance(operation, Sync):
                    synced.add(operation.node)
                certain[number] = operation.node in synced
            open_ones = [number for number in range(length) if not certain[number]]
            for chosen in _choices(len(open_ones), chance):
                kept = {number for number, keep in zip(open_ones, chosen, strict=True) if keep}
                yield length, self._tree(op for n, op in enumerate(prefix) if certain[n] or n in kept)

    def at_the_end(self) -> Tree:
        """What stands there where the power stays."""
        return self._tree(iter(self.operations))

    def _tree(self, operations: Iterator[Operation]) -> Tree:
        names = {node: dict(entries) for node, entries in self._before_names.items()}
        files: dict[int, bytearray] = {node: bytearray(data) for node, data in self._before_files.items()}
        for op in operations:
            if isinstance(op, Entry):
                entries = names.setdefault(op.node, {})
                if op.to is None:
                    entries.pop(op.name, None)
                else:
                    entries[op.name] = op.to
            elif isinstance(op, Data):
                content = files.setdefault(op.node, bytearray())
                if op.data is None:
                    content[op.offset :] = bytes(max(0, op.offset - len(content)))
                else:
                    content.extend(bytes(max(0, op.offset - len(content))))
                    content[op.offset : op.offset + len(op.data)] = op.data
        tree: Tree = {}

        def walk(node: int, path: str) -> None:
            for name, to in names.get(node, {}).items():
                here = f"{path}{name}"
                tree[here] = None if to in self._folders else bytes(files.get(to, b""))
                if to in self._folders:
                    walk(to, f"{here}/")

        walk(0, "")
        return tree

    _before_names: dict[int, dict[str, int]] = field(default_factory=dict)
    _before_files: dict[int, bytes] = field(default_factory=dict)
    _folders: set[int] = field(default_factory=set)


def _choices(count: int, chance: random.Random) -> Iterator[Sequence[bool]]:
    if count <= _ALL_OF:
        yield from product((True, False), repeat=count)
        return
    yield [True] * count
    yield [False] * count
    for number in (0, count - 1):
        yield [each == number for each in range(count)]
        yield [each != number for each in range(count)]
    for _ in range(_BY_CHANCE):
        share = chance.random()
        yield [chance.random() < share for _ in range(count)]


class _Recorder:
    """Plays a log on a disk in memory, and notes the operations."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        disk._before_names = {node: dict(entries) for node, entries in disk.names.items()}
        disk._before_files = dict(disk.files)
        self.sizes = {node: len(data) for node, data in disk.files.items()}
        self.open: dict[int, _File | None] = {}

    def play(self, log: str) -> None:
        for call in calls(log):
            handler = getattr(self, f"_{call.name}", None)
            if handler is not None:
                handler(call)
            elif call.name in _UNKNOWN and str(self.disk.root) in "".join(
                bytes_.decode(errors="replace") for arg in call.args for bytes_ in _strings(arg)
            ):
                raise NotImplementedError(f"{call.name}: the model does not know it")
        self.disk._folders = set(self.disk.names)

    def _place(self, folder: str, path: str) -> tuple[int, str] | None:
        """The folder and the name that a path means; ``None`` outside of the disk."""
        where = Path(path)
        if where.is_absolute():
            if where == self.disk.root or not where.is_relative_to(self.disk.root):
                return None
            where = where.relative_to(self.disk.root)
            start = 0
        elif folder == "AT_FDCWD" or (file := self.open.get(int(folder))) is None:
            return None
        else:
            start = file.node
        node = start
        for name in where.parent.parts:
            node = self.disk.names[node][name]
        return node, where.name

    def _set(self, node: int, name: str, to: int | None) -> None:
        if to is None:
            self.disk.names[node].pop(name, None)
        else:
            self.disk.names[node][name] = to
        self.disk.operations.append(Entry(node, name, to))

    def _write_at(self, file: _File, offset: int, data: bytes) -> None:
        self.disk.operations.append(Data(file.node, offset, data))
        self.sizes[file.node] = max(self.sizes.get(file.node, 0), offset + len(data))

    def _openat(self, call: Call) -> None:
        path = call.text(1)
        flags = call.args[2].split("|")
        if Path(path) == self.disk.root:
            self.open[call.result] = _File(0)
            return
        place = self._place(call.args[0], path)
        self.open[call.result] = None
        if place is None:
            return
        node, name = place
        found = self.disk.names[node].get(name) if name else node
        if found is None:
            if "O_CREAT" not in flags:
                return
            found = self.disk._new(folder=False)
            self._set(node, name, found)
        elif "O_TRUNC" in flags and self.sizes.get(found):
            self.disk.operations.append(Data(found, 0, None))
            self.sizes[found] = 0
        self.open[call.result] = _File(found, append="O_APPEND" in flags)

    def _file(self, call: Call) -> _File | None:
        return self.open.get(int(call.args[0]))

    def _close(self, call: Call) -> None:
        self.open.pop(int(call.args[0]), None)

    def _dup(self, call: Call) -> None:
        self.open[call.result] = self._file(call)

    def _fcntl(self, call: Call) -> None:
        if call.args[1].startswith("F_DUPFD"):
            self._dup(call)

    def _read(self, call: Call) -> None:
        if file := self._file(call):
            file.offset += call.result

    def _lseek(self, call: Call) -> None:
        if file := self._file(call):
            file.offset = call.result

    def _write(self, call: Call) -> None:
        if file := self._file(call):
            if file.append:
                file.offset = self.sizes.get(file.node, 0)
            self._write_at(file, file.offset, b"".join(_strings(call.args[1]))[: call.result])
            file.offset += call.result

    _writev = _write

    def _pwrite64(self, call: Call) -> None:
        if file := self._file(call):
            self._write_at(file, int(call.args[3]), b"".join(_strings(call.args[1]))[: call.result])

    def _ftruncate(self, call: Call) -> None:
        if file := self._file(call):
            self.disk.operations.append(Data(file.node, int(call.args[1]), None))
            self.sizes[file.node] = int(call.args[1])

    def _fsync(self, call: Call) -> None:
        if file := self._file(call):
            self.disk.operations.append(Sync(file.node))

    _fdatasync = _fsync

    def _syncfs(self, call: Call) -> None:
        nodes = [*self.disk.names, *self.disk.files] if self._file(call) else []
        self.disk.operations += map(Sync, nodes)

    def _made(self, place: tuple[int, str] | None) -> None:
        if place:
            self._set(*place, self.disk._new(folder=True))

    def _mkdir(self, call: Call) -> None:
        self._made(self._place("AT_FDCWD", call.text(0)))

    def _mkdirat(self, call: Call) -> None:
        self._made(self._place(call.args[0], call.text(1)))

    def _removed(self, place: tuple[int, str] | None) -> None:
        if place:
            self._set(*place, None)

    def _unlink(self, call: Call) -> None:
        self._removed(self._place("AT_FDCWD", call.text(0)))

    _rmdir = _unlink

    def _unlinkat(self, call: Call) -> None:
        self._removed(self._place(call.args[0], call.text(1)))

    def _renamed(self, old: tuple[int, str] | None, new: tuple[int, str] | None, flags: str = "0") -> None:
        if (old is None) != (new is None):
            raise NotImplementedError("a rename into or out of the folder")
        if old is None or new is None:
            return
        source, target = (self.disk.names[node].get(name) for node, name in (old, new))
        self._set(*new, source)
        self._set(*old, target if "EXCHANGE" in flags else None)

    def _rename(self, call: Call) -> None:
        self._renamed(self._place("AT_FDCWD", call.text(0)), self._place("AT_FDCWD", call.text(1)))

    def _renameat2(self, call: Call) -> None:
        flags = call.args[4] if len(call.args) > 4 else "0"
        self._renamed(self._place(call.args[0], call.text(1)), self._place(call.args[2], call.text(3)), flags)

    _renameat = _renameat2

    def _linked(self, old: tuple[int, str] | None, new: tuple[int, str] | None) -> None:
        if old and new:
            self._set(*new, self.disk.names[old[0]][old[1]])

    def _link(self, call: Call) -> None:
        self._linked(self._place("AT_FDCWD", call.text(0)), self._place("AT_FDCWD", call.text(1)))

    def _linkat(self, call: Call) -> None:
        self._linked(self._place(call.args[0], call.text(1)), self._place(call.args[2], call.text(3)))


def tree_of(folder: Path) -> Tree:
    """What a folder holds now."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def write_tree(tree: Mapping[str, bytes | None], folder: Path) -> None:
    """Make a folder hold that."""
    for path, data in sorted(tree.items()):
        if data is None:
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
