"""Tensors from PyTorch's checkpoint files, without PyTorch and without unpickling anything but tensors.

A checkpoint is a pickle whose tensors lie beside it in an archive (since PyTorch 1.6), or behind it in the same file.
The reader here knows dictionaries, lists, numbers, strings and tensors; a file that names any other class is refused by
the name of that class, and nothing of it is run.
"""

import collections
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from rmpe_jax.errors import RmpeError

# The first objects of a file of before PyTorch 1.6 (torch/serialization.py).
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_TYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "BFloat16Storage": None,  # NumPy has no such type: read as the upper half of float32
}


class TorchFileError(RmpeError):
    """A checkpoint that cannot be read; the message names the file."""


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a model's state: of a ``.safetensors`` file, or of PyTorch's ``.pth``, ``.pt``, ``.pth.tar``.

    Of a checkpoint with more in it (epoch, optimiser) the entry ``state_dict`` or ``model`` is taken.

    Raises:
        TorchFileError: no such file, damaged, of a class that is not a tensor's, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise TorchFileError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="numpy") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}
        content = _read_archive(path) if start[:2] == b"PK" else _read_stream(path)
    except _ForeignClass as error:
        raise TorchFileError(f"{path}: holds {error}, which is not loaded: only tensors are") from None
    except safetensors.SafetensorError as error:
        raise TorchFileError(f"{path}: damaged, or not a safetensors file: {error}") from None
    # Whatever else is wrong with a file ends in one of many exceptions of pickle, zipfile and NumPy.
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise TorchFileError(f"{path}: damaged, or not a checkpoint of PyTorch ({what})") from None
    return _state(content, path)


def _state(content: Any, path: Path) -> dict[str, np.ndarray]:
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    tensors = {}
    if isinstance(content, dict):
        tensors = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise TorchFileError(f"{path}: holds no state of a model, a dictionary of tensors")
    return tensors


class _ForeignClass(Exception):
    pass


class _Unknown:
    """Stands for numbers of NumPy, which checkpoints hold beside their tensors and nothing here asks for."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Tensors(pickle.Unpickler):
    """An unpickler that makes tensors of storages that it finds elsewhere, and nothing else."""

    def __init__(self, file: Any, storage: Any):
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,  # before PyTorch 0.4
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch", "Size"): tuple,
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("torch", "torch.storage") and name in _TYPES:
            return name
        if (module.split(".")[0], name) in (("numpy", "dtype"), ("numpy", "scalar"), ("_codecs", "encode")):
            return _Unknown
        raise _ForeignClass(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        kind, name, key, _, count = pid[:5]
        if kind != "storage" or name not in _TYPES:
            raise _ForeignClass(str(name))
        return self._storage(name, key, count)


class _Later:
    """A storage whose content is read after the pickle."""

    def __init__(self, name: str, count: int):
        self.name, self.count = name, count
        self.array: np.ndarray | None = None


def _array(name: str, content: bytes, count: int) -> np.ndarray:
    kind = _TYPES[name]
    if kind is None:
        upper = np.frombuffer(content, np.uint16, count).astype(np.uint32)
        return (upper << 16).view(np.float32)
    return np.frombuffer(content, kind, count)


def _rebuild_tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> Any:
    return (storage, offset, size, stride) if isinstance(storage, _Later) else _view(storage, offset, size, stride)


def _view(array: np.ndarray, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True)) if all(size) else offset
    if min([offset, *size, *stride]) < 0 or (all(size) and last >= len(array)):
        raise ValueError("a tensor reaches beyond its storage")
    steps = [step * array.itemsize for step in stride]
    # A copy: the view would keep the whole storage, and may not be written to.
    return np.lib.stride_tricks.as_strided(array[offset:], size, steps).copy()


def _read_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        (main,) = (name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl")
        folder = main.removesuffix("data.pkl")

        def storage(name: str, key: str, count: int) -> np.ndarray:
            return _array(name, archive.read(f"{folder}data/{key}"), count)

        with archive.open(main) as file:
            return _Tensors(file, storage).load()


def _read_stream(path: Path) -> Any:
    later: dict[str, _Later] = {}

    def storage(name: str, key: str, count: int) -> _Later:
        return later.setdefault(key, _Later(name, count))

    with path.open("rb") as file:
        first = [_Tensors(file, storage).load() for _ in range(3)]
        if first[:2] != [_MAGIC, _PROTOCOL]:
            raise ValueError("it does not begin as one")
        content, keys = (_Tensors(file, storage).load() for _ in range(2))
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            kept = later[key]
            width = np.dtype(_TYPES[kept.name] or np.uint16).itemsize
            kept.array = _array(kept.name, file.read(count * width), count)
    return _filled(content)


def _filled(content: Any) -> Any:
    """The same with the tensors that had to wait for their storages."""
    if isinstance(content, dict):
        return {name: _filled(value) for name, value in content.items()}
    if isinstance(content, tuple) and len(content) == 4 and isinstance(content[0], _Later):
        storage, offset, size, stride = content
        if storage.array is None:
            raise ValueError("a tensor's storage is missing")
        return _view(storage.array, offset, size, stride)
    return content
