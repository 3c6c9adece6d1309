"""Makes keras_residual.onnx, a quantized model from Keras for tests/sw/interchange/test_keras.py.

Keras and TensorFlow are no dependencies of this project, so the file is committed. It was made in an environment of its own
with Python 3.11, tensorflow-cpu 2.16.2, Keras 3.15.1, tf2onnx 1.17.0, onnx 1.16.2, onnxruntime 1.31.1 and scikit-learn:

    python tests/sw/interchange/data/make_keras_model.py tests/sw/interchange/data/keras_residual.onnx

The network takes (8, 8, 3) images 0..255, scikit-learn's digits in three colours (`coloured` of the test). It is trained
on the first 1437 of them; the tests look at the other 360. It holds what Keras users have: channels last, a Rescaling
layer, "same" padding at stride 2, batch norms, a depthwise convolution, ReLU6, a residual sum, a concatenation, a Flatten
of maps, a Softmax at the end; quantized by onnxruntime to int8, weights by channel.
"""

import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from sklearn.datasets import load_digits


def coloured() -> tuple:
    """float32 images (n, 8, 8, 3) of whole numbers 0..255, and labels."""
    found = load_digits()
    grey = found.images[..., None] * 255 // 16
    return np.concatenate([grey, grey // 2, 255 - grey], axis=3).astype(np.float32), found.target


def network() -> keras.Model:
    image = layers.Input((8, 8, 3))
    x = layers.Rescaling(1 / 127.5, -1)(image)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(12, 3, padding="same", use_bias=False)(x)))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
    y = layers.BatchNormalization()(layers.Conv2D(12, 1, use_bias=False)(y))
    x = layers.Activation("relu")(layers.Add()([x, y]))
    y = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Concatenate()([y, layers.MaxPooling2D(2)(x)])
    x = layers.MaxPooling2D(2)(layers.Conv2D(16, 3, padding="same", activation="relu")(x))
    x = layers.Dropout(0.1)(layers.Dense(24, activation="relu")(layers.Flatten()(x)))
    return keras.Model(image, layers.Dense(10, activation="softmax")(x))


class Batches(CalibrationDataReader):
    def __init__(self, images):
        self.batches = iter([{"image": images[i:i + 32]} for i in range(0, len(images), 32)])

    def get_next(self):
        return next(self.batches, None)


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    images, labels = coloured()
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images[:1437], labels[:1437], batch_size=32, epochs=25, verbose=2)
    print("accuracy", (model.predict(images[1437:], verbose=0).argmax(1) == labels[1437:]).mean())
    signature = [tf.TensorSpec((None, 8, 8, 3), tf.float32, name="image")]
    proto, _ = tf2onnx.convert.from_function(tf.function(lambda image: model(image, training=False)), signature, opset=13)
    with tempfile.TemporaryDirectory() as folder:
        real, prepared = Path(folder) / "real.onnx", Path(folder) / "prepared.onnx"
        real.write_bytes(proto.SerializeToString())
        quant_pre_process(str(real), str(prepared), skip_symbolic_shape=True)
        quantize_static(str(prepared), sys.argv[1], Batches(images[:320]), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
                        extra_options={"ActivationSymmetric": True})
