"""Model files of other tools: which command, or which converter, makes an integer graph of them."""

from pathlib import Path

WAYS = {
    ".onnx": "an ONNX file; make an integer graph of it with `esbflow import {path} --out graph.npz`",
    ".pt": "a torch file; `esbflow export {path} --out graph.npz` makes an integer graph of what `esbflow train` or "
           "`save_model` wrote",
    ".tflite": "a TensorFlow Lite model; convert it with tf2onnx (`python -m tf2onnx.convert --tflite {path} --output "
               "model.onnx`), then `esbflow import model.onnx --out graph.npz`",
    ".keras": "a Keras model; convert it with tf2onnx, quantize it with onnxruntime, then `esbflow import` it: "
              "docs/interchange.md shows how",
}
WAYS |= {".pth": WAYS[".pt"], ".h5": WAYS[".keras"], ".hdf5": WAYS[".keras"], ".pb": WAYS[".keras"]}


def other_tools(path, taken: tuple) -> str | None:
    """One sentence on a file whose name says that another command takes it, or None. `taken` are the caller's own endings.

    >>> other_tools("net.onnx", (".npz",))
    'net.onnx is an ONNX file; make an integer graph of it with `esbflow import net.onnx --out graph.npz`'
    >>> other_tools("graph.npz", (".npz",)), other_tools("net.onnx", (".onnx",))
    (None, None)
    """
    ending = Path(str(path)).suffix.lower()
    if ending in taken or ending not in WAYS:
        return None
    return f"{path} is {WAYS[ending].format(path=path)}"
